"""HTTP: a handler is parse, one call, return. Everything it calls lives in `core`."""
