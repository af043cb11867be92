"""Envoy bootstraps that use this service as it is meant to be used.

The rules: SDS by Unix socket, xDS v3, one HTTP/2 connection, quick retries, no session resumption
on mTLS servers, never ``combined_validation_context``.
"""
