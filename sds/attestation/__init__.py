"""Evidence: how it is collected, what it binds, and what it must show to be accepted."""
