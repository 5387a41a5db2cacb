"""Double-entry credits: immutable rows, integer amounts, a quote that is a cap."""
