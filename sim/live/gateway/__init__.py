"""The gateway: OpenAI's API in front of replicas, under a policy."""
