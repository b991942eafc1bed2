"""`aviary` and `python -m aviary`."""

from __future__ import annotations

import sys

from aviary.errors import INTERRUPTED_EXIT_CODE


def main() -> None:
    """Entry point of the `aviary` script."""
    try:
        from aviary.cli import run  # here, so that Ctrl-C during the imports ends as it does later

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
