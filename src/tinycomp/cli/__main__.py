"""`python -m tinycomp.cli` is the `tinycomp` command."""

import sys

from .main import main

sys.exit(main())
