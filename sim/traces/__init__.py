"""Traces at the command line: fetched, inspected, converted and fitted."""
