"""The door into Kubernetes: an operator for TokenPool and TokenEntitlement."""
