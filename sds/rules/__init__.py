"""The one language of rules, used by configuration files and signed policy alike.

Durations (:mod:`sds.rules.duration`), text with a star at its end and patterns by parts
(:mod:`sds.rules.glob`), patterns of SPIFFE IDs and DNS names (:mod:`sds.rules.pattern`), and
templates of names (:mod:`sds.rules.template`) each have one grammar, and it is here.
"""
