"""`python -m medseg.predict`."""

import sys

from . import main

sys.exit(main())
