"""The history of the schema, applied by `core.db.migrate`."""
