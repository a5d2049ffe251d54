"""`python -m stimg`."""

from __future__ import annotations

import sys

from stimg._cli import main

if __name__ == "__main__":
    sys.exit(main())
