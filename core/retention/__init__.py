"""What is kept for how long, deleted with what, and swept: reads and deeds that cross the domains."""
