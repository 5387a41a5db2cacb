"""A create that is sent twice makes one object: retries of the `openai` client, and `Idempotency-Key`."""
