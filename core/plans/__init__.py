"""Plans and quotes: what would be run, on what, how long, for how much, and why."""
