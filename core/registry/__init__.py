"""The model registry: base models that can be tuned, and the fine-tuned models that came out."""
