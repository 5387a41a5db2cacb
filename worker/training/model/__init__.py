"""The base model, what is trained of it, and its forward pass."""
