"""`python -m kpt_lab` does what `kpt-lab` does, also from a checkout that was not installed."""

import sys

from kpt_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
