"""Evidence: who produced it, what it is bound to, and what it must show to be accepted."""
