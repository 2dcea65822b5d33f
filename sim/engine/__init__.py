"""An engine as arithmetic: what an iteration costs, speculative decoding, how a replica is divided. No clock."""
