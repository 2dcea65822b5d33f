"""The simulated world: SimPy carries events between clients, gateway core and replicas."""
