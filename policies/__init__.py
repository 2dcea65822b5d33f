"""What to do next: pure decisions. Standard library only, no clock, no I/O."""
