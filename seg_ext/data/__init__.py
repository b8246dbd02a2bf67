"""Data sets, reading, augmentation, and the mapper; importing this registers the built-in data sets."""

from __future__ import annotations

from seg_ext.data.datasets import data_root, register_all

register_all(data_root())
