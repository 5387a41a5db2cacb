"""Token ids, and batches of them."""
