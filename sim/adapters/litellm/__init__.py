"""The door into LiteLLM's proxy: a custom callback."""
