"""`python -m pyimgano` is the command `pyimgano`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
