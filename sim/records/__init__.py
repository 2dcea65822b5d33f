"""What a run measures, and the folder that keeps it."""
