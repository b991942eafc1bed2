"""What the GET requests of /v1/responses may say in their URLs. Knows OpenAI's wire format only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from gateway.protocol.response_create import Includable
from gateway.protocol.validation import RequestModel, only_neutral

MAX_LISTED = 100


class _Query(RequestModel):
    """Every value is a text; what may be given several times is a list."""

    include: list[Includable] | None = Field(
        None, description="Accepted without effect: what is kept is told as it was."
    )

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Raises `InvalidRequestError`."""
        fields: dict[str, Any] = {}
        for key, value in pairs:
            name = key.removesuffix("[]")
            if name == "include":
                fields.setdefault(name, []).append(value)
            else:
                fields[name] = value
        return cls.check(fields, max_choices=1)


class RetrieveQuery(_Query):
    """Of a response."""

    include_obfuscation: str | None = Field(None, description="Accepted without effect: only streams have it.")

    starting_after: only_neutral() = None  # type: ignore[valid-type]
    stream: only_neutral("false", "False", "0") = None  # type: ignore[valid-type]


class ItemListQuery(_Query):
    """Of a response's input items."""

    after: str | None = Field(None, description="The id of an item: those that come after it in this order.")
    limit: Annotated[int, Field(strict=False, ge=1, le=MAX_LISTED, description="Items at most.")] = 20
    order: Literal["asc", "desc"] = Field("desc", description="The newest item last or first.")
