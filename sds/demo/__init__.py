"""The demo: an authority, an agent and two Envoys, with traffic that proves every rotation.

Everything here runs in one supervising process; what it supervises are the same commands that
production runs. Nothing else in the project imports this package.
"""
