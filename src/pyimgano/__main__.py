"""`python -m pyimgano` is the command `pyimgano`."""

from .cli import main

if __name__ == "__main__":
    main()
