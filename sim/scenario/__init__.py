"""From YAML text to checked models."""
