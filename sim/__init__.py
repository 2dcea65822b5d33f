"""The testbed: scenarios in, records and figures out."""
