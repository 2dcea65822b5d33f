"""Trace files in the formats of their publishers: read as streams of rows, and written."""
