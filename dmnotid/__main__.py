"""`python -m dmnotid` is `dmnotid`."""

import sys

from dmnotid.cli import main

if __name__ == "__main__":
    sys.exit(main())
