"""``python -m seg_ext``: the same as ``seg-ext``."""

import sys

from seg_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
