"""What only our documents ask for."""
