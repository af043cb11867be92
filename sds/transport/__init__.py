"""gRPC over HTTP/2, for the sockets that Envoys connect to and for the authority's port.

``grpc.aio`` does not tell which process is at the other end of a Unix socket and takes no accepted
descriptor. For a crowd of Envoys it costs three times the processor time and ten times the memory
of this package (docs/adr/0901). So this package speaks the part of HTTP/2 that a gRPC server needs,
and runs the same handlers (``grpc.GenericRpcHandler``) as grpc's own server.
"""
