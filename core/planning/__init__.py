"""Planning with what finished jobs have taught, and from a plan to a job."""
