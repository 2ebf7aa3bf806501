"""`python -m medseg.evaluate`."""

import sys

from . import main

sys.exit(main())
