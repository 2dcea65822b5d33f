"""Fuzzers for every kind of file that is read: see `fuzz.run`."""
