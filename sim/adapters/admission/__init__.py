"""What every door shares: the configuration, the core with its clock, and requests from admission to settlement."""
