"""Shipped profiles (YAML), GPUs by name, and rooflines for any model. What a profile is: `sim.scenario.profile`."""
