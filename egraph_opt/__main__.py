"""``python -m egraph_opt`` is the command line."""

import sys

from egraph_opt.cli.supervisor import supervised

sys.exit(supervised())
