"""Memory of a training step, term by term."""
