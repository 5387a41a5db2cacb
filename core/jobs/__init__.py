"""Fine-tuning jobs: one table of states, leases that fence, and the verbs users and workers have."""
