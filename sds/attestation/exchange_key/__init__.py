"""The key that signs an agent's exchanges, measured into a runtime register before any pod runs."""
