"""Makes Envoy bootstraps that use this service as intended.

The rules are: SDS over a Unix socket, xDS v3, one HTTP/2 connection, quick retries, no session
resumption on mTLS servers, never ``combined_validation_context``.
"""
