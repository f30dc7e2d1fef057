"""`python -m clipkit` is the `clipkit` command."""

import sys

from clipkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
