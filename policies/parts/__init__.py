"""What policies are made of: estimates, costs, saturation, queues and orders. Each part has a name of its own."""
