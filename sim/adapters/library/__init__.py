"""The library: a gate for anybody's own server, on an asyncio loop or among threads."""
