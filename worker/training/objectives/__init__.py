"""What a run learns: rows, batches, loss and metrics."""
