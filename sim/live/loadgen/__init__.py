"""The load generator: a scenario's demand against a real server."""
