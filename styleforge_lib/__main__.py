"""``python -m styleforge_lib``: the command line of :mod:`styleforge_lib.cli`."""

import sys

from styleforge_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
