"""The command line as `python -m llada`."""

import sys

from llada_cli import main


if __name__ == "__main__":
    sys.exit(main())
