"""The core behind other doors than our own gateway: each imports `sim.adapters.admission` and no other door."""
