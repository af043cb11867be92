"""Serving secrets: Envoy's SDS and SPIFFE's Workload API over one store.

Invariant: serving knows neither authorities nor attestation; it meets rotation in the store.
"""
