"""`python -m medseg.export`."""

import sys

from . import main

sys.exit(main())
