"""Ids of responses and of their items. An item's id tells its response, so that a reference to it can be followed."""

from __future__ import annotations

import re
import uuid
from typing import Final

_PREFIX: Final = "resp_"
_ITEM: Final = re.compile(r"[a-z]+_([0-9a-f]{32})[io]\d+", re.ASCII)


def new_response_id() -> str:
    return _PREFIX + uuid.uuid4().hex


def input_item_id(kind: str, response_id: str, position: int) -> str:
    """`kind` is what the id begins with."""
    return f"{kind}_{response_id.removeprefix(_PREFIX)}i{position}"


def output_item_id(kind: str, response_id: str, position: int) -> str:
    return f"{kind}_{response_id.removeprefix(_PREFIX)}o{position}"


def response_of(item_id: str) -> str | None:
    """The response that an item belongs to; None when no response of ours has given it that id."""
    found = _ITEM.fullmatch(item_id)
    return None if found is None else _PREFIX + found[1]
