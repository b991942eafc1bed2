"""The library llama.cpp, or a clear word that it is missing. Whoever calls it imports it from here.

Raises `UnsupportedModelError` where llama-cpp-python is not installed.
"""

from __future__ import annotations

from typing import Any

from workers.errors import UnsupportedModelError

try:
    import llama_cpp as _library
except ImportError as error:
    raise UnsupportedModelError(
        f"the initializer LlamaCpp needs llama-cpp-python ({error}); install it with pip install 'aviary[llama]'"
    ) from error

llama_cpp: Any = _library


def has_amx() -> bool:
    """Whether llama.cpp was built with AMX kernels, which crash when some versions of gcc have compiled them.

    They are reached through its extra buffer types only. `make install` leaves them out; other builds may have them.
    """
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()
