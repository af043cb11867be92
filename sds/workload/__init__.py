"""Who is on the socket: peer credentials, attestors and the selectors that they give."""
