"""Many runs: replications, sweeps, the reproduction of the paper."""
