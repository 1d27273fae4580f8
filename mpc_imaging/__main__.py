"""``python -m mpc_imaging``: see `mpc_imaging.app`."""

import sys

from mpc_imaging.app import main

if __name__ == "__main__":
    sys.exit(main())
