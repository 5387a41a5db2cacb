"""The database: one declarative base, one engine per process, one transaction per request or task."""
