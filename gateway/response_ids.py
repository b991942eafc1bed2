"""Ids of responses and of their items. An item's id tells its response, so that a reference to it can be followed."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Final

_PREFIX: Final = "resp_"
_ITEM: Final = re.compile(r"[a-z]+_([0-9a-f]{32})([io])(\d{1,9})", re.ASCII)


def new_response_id() -> str:
    return _PREFIX + uuid.uuid4().hex


def input_item_id(kind: str, response_id: str, position: int) -> str:
    """`kind` is what the id begins with."""
    return f"{kind}_{response_id.removeprefix(_PREFIX)}i{position}"


def output_item_id(kind: str, response_id: str, position: int) -> str:
    return f"{kind}_{response_id.removeprefix(_PREFIX)}o{position}"


@dataclass(frozen=True, slots=True)
class ItemPlace:
    """Where an item is to be found."""

    response_id: str
    is_input: bool
    position: int


def place_of(item_id: str) -> ItemPlace | None:
    """Where an item is; None when no response of ours has given it that id."""
    found = _ITEM.fullmatch(item_id)
    return None if found is None else ItemPlace(_PREFIX + found[1], found[2] == "i", int(found[3]))
