"""How often a key, an address or an account may ask: counted in Redis, for all processes together."""
