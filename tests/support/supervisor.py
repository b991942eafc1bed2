"""A supervisor of gateway processes as a program of its own: `python -m tests.support.supervisor`. Prints its URL.

However often a test kills processes, the next ones start at once.
"""

from __future__ import annotations

import asyncio
import sys

from aviary.settings import load_gateway_settings
from aviary.supervisor import serve_together
from workers.pool import back_off

COMMAND = (sys.executable, "-m", "tests.support.supervised_gateway")


def tell(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    back_off.STABLE_S = 0.0  # type: ignore[misc]
    sys.exit(asyncio.run(serve_together(load_gateway_settings(), on_started=tell, command=COMMAND)))
