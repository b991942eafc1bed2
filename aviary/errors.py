"""How a command ends other than well. Each becomes lines on stderr, `aviary: …`, and an exit status.

CommandError                1  what was asked for failed
├── UsageError              2  it was asked for wrongly, or here it cannot be done; nothing was started
└── ClusterReplacedError    1  the cluster that was joined is no more; started again, the command joins the new one
"""

from __future__ import annotations

from typing import Final

INTERRUPTED_EXIT_CODE: Final = 130
"""Of a command that Ctrl-C ended before it was done; as shells have it."""


class CommandError(Exception):
    """What was asked for failed; the message is for people."""

    exit_code = 1


class UsageError(CommandError):
    """Arguments, settings, registry, port, store or cluster do not allow it; nothing was started."""

    exit_code = 2


class ClusterReplacedError(CommandError):
    """Nothing that knew the first cluster can reach the second: Ray refuses it."""

    def __init__(self, address: str) -> None:
        super().__init__(f"another cluster has taken the place of the one that was joined at {address}")
