"""`aviary` and `python -m aviary`."""

from __future__ import annotations

import sys

from aviary.cli import run


def main() -> None:
    """Entry point of the `aviary` script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
