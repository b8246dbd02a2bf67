#!/usr/bin/env python
"""Predict images and folders; the same as ``seg-ext predict``."""

import sys

from seg_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
