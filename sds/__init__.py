"""attested-sds: a node-local secret discovery service for Envoy."""

__version__ = "0.1.0"
