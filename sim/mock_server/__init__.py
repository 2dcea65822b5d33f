"""Simulated replicas in real time, behind OpenAI's API: a server to try gateways, clients and dashboards against."""
