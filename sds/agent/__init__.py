"""The agent: rotation, store and serving put together, with its sockets and its shutdown."""
