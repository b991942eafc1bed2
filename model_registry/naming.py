"""Model ids, the slugs made of them, and the names of registry files.

A model id is `organisation/model` (or just `model`). Its slug, with `--` for `/`, names actors and files and turns
back into the id: that is why an id may not contain `--`. A file is called by its model's slug, optionally followed by
`-` and anything: `<organisation>--<model>-<parameters>-<extra>.yaml`. Pure functions for the schema, the loader and
the pool.
"""

from __future__ import annotations

import re
from typing import Final

_PART: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_])?"
MODEL_ID_PATTERN: Final = f"^{_PART}(/{_PART})?$"
MAX_MODEL_ID_LENGTH: Final = 200
REGISTRY_SUFFIXES: Final = (".yaml", ".yml")

_SEPARATOR: Final = "--"
_MODEL_ID: Final = re.compile(MODEL_ID_PATTERN)


def check_model_id(model_id: str) -> str:
    """The id itself. Raises `ValueError` with the reason when it is not one."""
    if len(model_id) > MAX_MODEL_ID_LENGTH:
        raise ValueError(f"has {len(model_id)} characters; a model id has {MAX_MODEL_ID_LENGTH} at most")
    if _SEPARATOR in model_id or ".." in model_id:
        raise ValueError(f'"{model_id}" contains "--" or "..", which a model id must not: "--" stands for "/" in names')
    if _MODEL_ID.fullmatch(model_id) is None:
        raise ValueError(
            f'"{model_id}" is not a model id: `organisation/model` or `model`, each of letters, digits, ".", "_" and '
            '"-", starting with a letter or digit and not ending with "." or "-"'
        )
    return model_id


def is_model_id(text: str) -> bool:
    """Whether `check_model_id` accepts it."""
    try:
        check_model_id(text)
    except ValueError:
        return False
    return True


def slug_of(model_id: str) -> str:
    """`mosaicml/mpt-7b` → `mosaicml--mpt-7b`: free of slashes, for names of actors and files."""
    return check_model_id(model_id).replace("/", _SEPARATOR)


def model_id_of(slug: str) -> str:
    """Undoes `slug_of`. Raises `ValueError` when no model id has this slug."""
    organisation, separator, model = slug.partition(_SEPARATOR)
    return check_model_id(f"{organisation}/{model}" if separator else slug)


def file_name_of(model_id: str, extra: str = "") -> str:
    """The file name of a model, or of a variant of it told apart by `extra`."""
    return f"{slug_of(model_id)}{f'-{extra}' if extra else ''}{REGISTRY_SUFFIXES[0]}"


def is_file_name_of(file_name: str, model_id: str) -> bool:
    """Whether a file of this name may define this model: its slug, perhaps `-` and anything, then the suffix."""
    stem, dot, suffix = file_name.rpartition(".")
    slug = slug_of(model_id)
    return f"{dot}{suffix}" in REGISTRY_SUFFIXES and (stem == slug or stem.startswith(f"{slug}-"))
