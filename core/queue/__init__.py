"""Messages to workers and wake-ups to readers. The database owns the truth; these only say where to look."""
