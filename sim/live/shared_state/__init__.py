"""Several gateways of one pool, through Redis."""
