"""What an operator switches on: metrics, logs and the status page, composed.

Invariant: the agent and the authority hand in their ports and get wrapped ones back; with nothing
switched on, nothing is imported, opened or slowed but the counting itself.
"""
