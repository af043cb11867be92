"""gRPC over HTTP/2 on Unix sockets, for the sockets that Envoys connect to.

``grpc.aio`` says nothing of the process at the other end of a Unix socket, takes no accepted
descriptor, and costs three times the processor time and twenty times the memory of this package
for a crowd of Envoys (docs/adr/0901). So this speaks the part of HTTP/2 that a gRPC server needs,
and runs the same handlers (``grpc.GenericRpcHandler``) as grpc's own server.

==================  ==========================================================================
``frames``          the layout of frames (RFC 9113, section 4 and 6)
``headers``         requests' heads, through the library ``hpack``; responses' heads
``flow``            what may be sent and received on one stream (RFC 9113, section 5)
``outgoing``        what one connection sends, within the client's windows
``rate``            how often something may happen
``connection``      the protocol of one connection, without I/O
``messages``        gRPC's length-prefixed messages, time-outs and status texts
``call``            one remote call: what a handler reads from and writes to
``handling``        a handler run for one call
``server``          sockets, tasks and the end
==================  ==========================================================================
"""
