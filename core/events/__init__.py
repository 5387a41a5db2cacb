"""What happened to a job, in order. The table is the truth; wake-ups only make reading it prompt."""
