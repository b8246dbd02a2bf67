#!/usr/bin/env python
"""Train and evaluate what a yaml describes, with detectron2's own flags; the same as ``seg-ext train``."""

import sys

from seg_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
