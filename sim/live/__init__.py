"""The real world: asyncio carries events between clients, gateway core and vLLM. Never imports simpy."""
