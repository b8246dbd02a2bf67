"""Checkpoints: safe reading, atomic writing."""

from seg_ext.checkpoint.checkpointer import Checkpointer

__all__ = ["Checkpointer"]
