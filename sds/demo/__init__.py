"""Runs the demo: an authority, an agent and two Envoys, with traffic that proves every rotation.

Everything here runs in one supervising process, which runs the same commands as production. Nothing
else in the project imports this package.
"""
