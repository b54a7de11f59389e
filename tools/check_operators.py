"""Hold the library's own kernels of the lessons' operators to `lab.check`, in every dtype that they take.

    python tools/check_operators.py                        # all, wherever compile_cuda launches: a GPU or the emulator
    python tools/check_operators.py relu residual_add      # these

Exits with 1 where a kernel is wrong.
"""

import argparse
import sys

from styleforge_lib.lab import check
from styleforge_lib.ops import find_operator, operators


def main(argv: list[str] | None = None) -> int:
    """Check what was asked for, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [operator.name for operator in operators()]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    given = parser.parse_args(argv).names
    if unknown := set(given) - set(names):
        parser.error(f"no operator is called {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    chosen = [find_operator(name) for name in given or names]
    verdicts = [check(operator, operator.launch, dtype=dtype) for operator in chosen for dtype in operator.dtypes]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
