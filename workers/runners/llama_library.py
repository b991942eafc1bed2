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
