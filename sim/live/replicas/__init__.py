"""The servers behind the gateway: choosing, asking, scaling."""
