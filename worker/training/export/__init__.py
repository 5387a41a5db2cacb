"""What a run publishes, and the proof that it is what was trained."""
