"""Checkpoints: safe reading, atomic writing, and weights of other libraries."""

from seg_ext.checkpoint.checkpointer import Checkpointer
from seg_ext.checkpoint.files import read_checkpoint, write_safetensors, write_whole

__all__ = ["Checkpointer", "read_checkpoint", "write_safetensors", "write_whole"]
