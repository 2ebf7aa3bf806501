"""`python -m medseg VERB ...` is `medseg VERB ...`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
