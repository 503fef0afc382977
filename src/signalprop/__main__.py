"""`python -m signalprop` is the command `signalprop`."""

import sys

from signalprop.cli import main

if __name__ == "__main__":
    sys.exit(main())
