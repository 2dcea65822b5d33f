"""A policy, a router, an arrival law and a client from outside tokenpools."""
