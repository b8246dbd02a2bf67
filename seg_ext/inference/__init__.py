"""Inference: predictors, list[dict] -> list[dict] in detectron2's format, and what wraps them."""
