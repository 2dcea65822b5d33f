"""How many replicas a pool should have: autoscalers, each a rule under one governor."""
