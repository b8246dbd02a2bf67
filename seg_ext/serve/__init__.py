"""A page and a JSON endpoint to try a model on: images come in by HTTP, within limits, and leave no trace."""
