"""Promises, deadlines and predictions at a gateway that queues: what the reproduced token pools lack."""
