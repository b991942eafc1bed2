"""llama.cpp's own log, turned into Python's: at debug level, or at info where the registry says `verbose`.

The library has one log for the whole process. Its errors are remembered, because its functions only return nothing when
they fail: the reason stands in the log alone.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

from workers.runners.llama_library import llama_cpp

logger = logging.getLogger("llama.cpp")

_ERROR_LEVEL: Final = 4
_CONTINUED_LEVEL: Final = 5
_errors: deque[str] = deque(maxlen=8)
_level = logging.DEBUG


def _on_text(level: int, text: bytes, _user_data: Any) -> None:
    line = text.decode(errors="replace").strip(" .\n")
    if not line or level == _CONTINUED_LEVEL:  # dots and the rest of a line already logged
        return
    if level == _ERROR_LEVEL:
        _errors.append(line)
    logger.log(_level, "%s", line)


_callback = llama_cpp.llama_log_callback(_on_text)
"""Held for as long as the process lives, because the library calls it that long."""


def redirect_log(*, verbose: bool) -> None:
    """From now on."""
    global _level  # as the library's own log, one for the process
    _level = logging.INFO if verbose else logging.DEBUG
    _errors.clear()
    llama_cpp.llama_log_set(_callback, None)


def first_error() -> str:
    """What went wrong since the log was redirected: the first error, which the later ones follow from."""
    return _errors[0] if _errors else "no reason given"
