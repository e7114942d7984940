"""How rewards run: processes that can be killed, what crosses to them, the cache, and the table of a step."""
