"""Reads a configuration file: YAML, the types of fields, and errors that name the field.

Invariant: settings are data; the functions that build running parts from them live in the
composition roots (``sds.agent`` and ``sds.ca``).
"""
