"""What this gateway keeps of responses, in the words of /v1/responses: the store's errors become the client's.

Without a store nothing is kept, and whoever asks for something hears why. An answer is never lost for want of its
copy: where the store fails, the response says that it is not kept. Used by the routes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Final

import msgspec

from gateway.conversation import Json, items_to_keep, parse_items
from gateway.errors import (
    ContextLengthExceededError,
    ItemNotFoundError,
    PreviousResponseNotFoundError,
    ResponseNotFoundError,
    ServerError,
)
from gateway.protocol.response_items import InputItem, ItemReference, KeptItem
from gateway.protocol.response_objects import Response
from gateway.protocol.responses import encode
from gateway.response_ids import response_of
from gateway.response_store import ConversationTooLongError, KeptResponse, ResponseStore
from gateway.store_file import StoreError

logger = logging.getLogger(__name__)

_NOTHING_KEPT: Final = "This server keeps no responses (AVIARY_RESPONSES_STORE is not set); send all items in 'input'."
_NOT_THIS_ONE: Final = "It may have been made with 'store' false or deleted, or its time may be over."


class KeptResponses:
    """In front of a store, or of none."""

    def __init__(self, store: ResponseStore | None, *, max_conversation_bytes: int) -> None:
        self._store = store
        self._max_conversation_bytes = max_conversation_bytes

    async def open(self) -> None:
        """Raises `StoreError`."""
        if self._store is not None:
            await self._store.open()

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    def keeps(self, wanted: bool | None) -> bool:
        """Whether a response is to be kept whose request says so of `store`; it is where nothing is said."""
        return self._store is not None and wanted is not False

    async def items_before(self, previous_id: str | None) -> list[KeptItem]:
        """The conversation up to and with a response. Raises `ApiError`."""
        if previous_id is None:
            return []
        try:
            chain = await self._conversation(previous_id, max_bytes=self._max_conversation_bytes, renew=True)
        except ConversationTooLongError as error:
            what = f"The conversation up to '{previous_id}'"
            raise self._too_long(what, error.num_bytes, param="previous_response_id") from None
        if not chain:
            raise PreviousResponseNotFoundError(previous_id, self._why_not)
        return [item for one in chain for item in parse_items(_all_items(one))]

    async def follow(self, items: Sequence[InputItem]) -> list[KeptItem]:
        """The items, with those that references refer to in their places. Raises `ApiError`."""
        referred = iter(await self._referred([item.id for item in items if isinstance(item, ItemReference)]))
        return [item if isinstance(item, KeptItem) else next(referred) for item in items]

    async def keep(self, response: Response, input_items: Sequence[KeptItem]) -> Response:
        """The response, which says whether it is kept."""
        if self._store is None or not response.store:
            return response
        kept = KeptResponse(
            id=response.id,
            previous_id=response.previous_response_id,
            body=encode(response),
            input_items=encode(items_to_keep(input_items, response.id)),
        )
        try:
            is_kept = await self._store.put(kept)
        except StoreError as error:
            logger.error("response %s is not kept: %s", response.id, error)  # noqa: TRY400  its traceback tells no more
            is_kept = False
        return response if is_kept else msgspec.structs.replace(response, store=False)

    async def body(self, response_id: str) -> bytes:
        """The response in JSON. Raises `ApiError`."""
        kept = await self._get(response_id)
        if kept is None:
            raise ResponseNotFoundError(response_id, self._why_not)
        return kept.body

    async def delete(self, response_id: str) -> None:
        """Raises `ApiError`."""
        with _faults_told():
            if self._store is None or not await self._store.delete(response_id):
                raise ResponseNotFoundError(response_id, self._why_not)

    async def input_items(self, response_id: str) -> list[Json]:
        """Everything that the response was made from, oldest first. Raises `ApiError`."""
        chain = await self._conversation(response_id)
        if not chain:
            raise ResponseNotFoundError(response_id, self._why_not)
        *earlier, last = chain
        return [item for one in earlier for item in _all_items(one)] + _items(last.input_items)

    @property
    def _why_not(self) -> str:
        return _NOTHING_KEPT if self._store is None else _NOT_THIS_ONE

    async def _get(self, response_id: str) -> KeptResponse | None:
        with _faults_told():
            return None if self._store is None else await self._store.get(response_id)

    async def _conversation(
        self, response_id: str, *, max_bytes: int | None = None, renew: bool = False
    ) -> Sequence[KeptResponse]:
        with _faults_told():
            if self._store is None:
                return ()
            return await self._store.conversation(response_id, max_bytes=max_bytes, renew=renew)

    async def _referred(self, item_ids: Sequence[str]) -> list[KeptItem]:
        """One response is read at a time: references to its items mostly follow each other."""
        referred: list[Json] = []
        num_bytes = 0
        for response_id, ids in groupby(item_ids, response_of):
            items = await self._items_of(response_id)
            for item_id in ids:
                if item_id not in items:
                    raise ItemNotFoundError(item_id, self._why_not)
                num_bytes += len(encode(items[item_id]))
                if num_bytes > self._max_conversation_bytes:
                    raise self._too_long("What 'input' refers to", num_bytes, param="input")
                referred.append(items[item_id])
        return parse_items(referred)

    def _too_long(self, what: str, num_bytes: int, *, param: str) -> ContextLengthExceededError:
        return ContextLengthExceededError(
            f"{what} has {num_bytes} bytes, more than the {self._max_conversation_bytes} that a request may have. "
            "Begin a new conversation with what matters of it.",
            param=param,
        )

    async def _items_of(self, response_id: str | None) -> dict[str, Json]:
        """By their ids."""
        kept = None if response_id is None else await self._get(response_id)
        return {} if kept is None else {item["id"]: item for item in _all_items(kept)}


_items = msgspec.json.Decoder(list[Json]).decode
_response = msgspec.json.Decoder(Json).decode


def _all_items(kept: KeptResponse) -> list[Json]:
    return [*_items(kept.input_items), *_response(kept.body)["output"]]


@contextmanager
def _faults_told() -> Iterator[None]:
    """A store that fails is our fault, whose details go into the log."""
    try:
        yield
    except StoreError as error:
        logger.error("kept responses cannot be reached: %s", error)  # noqa: TRY400  its traceback tells no more
        raise ServerError from error
