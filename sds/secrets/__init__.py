"""Secrets in memory: the store of snapshots, the rotation that fills it, and the memory of keys."""
