"""`python -m medseg.serve`."""

import sys

from . import main

sys.exit(main())
