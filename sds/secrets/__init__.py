"""Secrets in memory: the store of snapshots, the rotation that fills it, the memory they lie in."""
