"""Envoy's messages, as far as the processor reads and writes them: ``make protos`` makes the modules from the protos.

Names and numbers are those of Envoy's API (envoy/service/ext_proc/v3 and what it needs); fields that are not here are
skipped when they come. The packages that have all of the API bring modules of opentelemetry-proto's names along, in an
older version (xds-protos), or parse in Python, at 70 us for a token of a stream (envoy-data-plane).
"""
