"""HTTP/2 and gRPC for a server: bytes in, calls out. No I/O, no clock, no log."""
