"""Checkpoints: safe reading, atomic writing."""

from seg_ext.checkpoint.checkpointer import Checkpointer, write_whole

__all__ = ["Checkpointer", "write_whole"]
