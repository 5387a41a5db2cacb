"""Predict what a fine-tuning run needs, and choose the run that fits. Pure arithmetic over plain data."""
