"""Routers that look at more than turns and what is owed: text in common, reports, speeds, tiers."""
