"""Backups of the whole service: its database as it was at one moment, and the stored objects that it names."""
