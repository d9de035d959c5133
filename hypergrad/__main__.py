"""``python -m hypergrad``: the command line."""

import sys

from hypergrad.cli import main

sys.exit(main())
