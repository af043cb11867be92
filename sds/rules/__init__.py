"""Defines the language of rules, for configuration files and signed policy alike.

Durations (:mod:`sds.rules.duration`), text with a star at its end and patterns by parts
(:mod:`sds.rules.glob`), patterns of SPIFFE IDs and DNS names (:mod:`sds.rules.pattern`), and
templates of names (:mod:`sds.rules.template`) each have one grammar, which this package owns.
"""
