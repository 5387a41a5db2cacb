"""What a model is made of: every parameter by its role."""
