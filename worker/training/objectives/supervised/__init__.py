"""Supervised training: the completion's tokens are predicted from what stands before them."""
