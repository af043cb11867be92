"""gRPC over HTTP/2, for the sockets that Envoys connect to and for the authority's port.

``grpc.aio`` does not tell which process is at the other end of a Unix socket and takes no accepted
descriptor. For a crowd of Envoys it costs three times the processor time and ten times the memory
of this package (docs/adr/0901). So this package speaks the part of HTTP/2 that a gRPC server needs,
and runs the same handlers (``grpc.GenericRpcHandler``) as grpc's own server.

====================  ========================================================================
``frames``            the layout of frames (RFC 9113, sections 4 and 6)
``frame_reader``      bytes cut into frames
``field_blocks``      HEADERS and CONTINUATION joined (section 4.3)
``header_decoder``    field blocks decoded, through the library ``hpack``
``headers``           what requests' and responses' fields say (section 8)
``settings``          the client's settings (section 6.5)
``flow_control``      what may be sent and received on one stream (section 5)
``pieces``            parts of output that waits, and what they keep in memory
``outgoing``          what one connection sends, within the client's windows
``events``            what a connection tells about its client
``streams``           the streams of one connection: the open ones, and those we reset
``connection``        the protocol of one connection, without I/O
``messages``          gRPC's length-prefixed messages, time-outs and status texts
``call``              one remote call: what a handler reads from and writes to
``link``              what a call needs of its connection
``calls``             the calls of one connection, opened, fed and ended
``handling``          a handler run for one call
``steps``             what runs for a call, in steps that its owner pays for
``rate``              how often
``budget``            what each owner of connections uses
``budget_sizes``      how much each owner may use
``usage``             what each owner uses, in plain values for people and metrics
``owner_lines``       the log lines that an owner causes
``of_loop``           objects of which each event loop has one
``turns``             whose turn it is on the event loop
``input_readiness``   which sockets have input
``unread``            what the kernel keeps of our output until a client reads it
``connected_socket``  one socket: its descriptor and its unsent output
``endpoint``          what a connection needs of its socket
``tls_settings``      what a server's TLS offers
``tls_socket``        one socket with TLS
``tls_records``       how many TLS records one look may have
``hello_bound``       how much a client may send before its TLS handshake is over
``client_hello``      which group of the key exchange a client offers
``accepting``         a listening socket
``served``            one connection that is served
``server``            handlers, sockets, the end
====================  ========================================================================
"""
