"""Proving the books from their rows alone."""
