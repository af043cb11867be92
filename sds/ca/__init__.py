"""Certificate authorities: our own (server side) and the clients that ask one."""
