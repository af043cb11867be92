"""Composes what an operator switches on: metrics, logs and the status page.

Invariant: the agent and the authority pass in their ports and get wrapped ports back; with nothing
switched on, no library is imported, no socket is opened, and only the counting takes time.
"""
