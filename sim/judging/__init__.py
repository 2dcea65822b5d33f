"""Metrics with runs of their own, explanations, counterfactuals, decision parity."""
