"""Measurements in, profiles out."""
