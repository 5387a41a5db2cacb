"""A training step on fake tensors: the planner's ground truth without a GPU."""
