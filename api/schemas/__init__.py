"""Wire shapes, one file per resource. OpenAI's where OpenAI has them."""
