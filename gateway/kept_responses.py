"""What this gateway keeps of responses, in the words of /v1/responses: the store's errors become the client's.

Without a store nothing is kept, and whoever asks for something hears why. An answer is never lost for want of its
copy: where the store fails, the response says that it is not kept. Conversations may be large, so they are read and
written in threads. Used by the routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway.conversation import Json, id_of_kept, items_in_full, items_to_keep, parse_items
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
from gateway.response_ids import ItemPlace, place_of
from gateway.response_store import ConversationTooLongError, KeptResponse, ResponseStore
from gateway.store_file import StoreError

logger = logging.getLogger(__name__)

_NOTHING_KEPT: Final = "This server keeps no responses (AVIARY_RESPONSES_STORE is not set); send all items in 'input'."
_NOT_THIS_ONE: Final = "It may have been made with 'store' false or deleted, or its time may be over."

_MAX_READ: Final = 4
"""Of what references refer to, times what they may come to: one item may be of a large response."""


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
            chain = await self._conversation(previous_id, max_bytes=self._max_conversation_bytes)
        except ConversationTooLongError as error:
            what = f"The conversation up to '{previous_id}'"
            raise self._too_long(what, error.num_bytes, param="previous_response_id") from None
        if not chain:
            raise PreviousResponseNotFoundError(previous_id, self._why_not)
        await self._renew(chain)
        return await asyncio.to_thread(_conversation_of, chain)

    async def follow(self, items: Sequence[InputItem]) -> list[KeptItem]:
        """The items, with those that references refer to in their places. Raises `ApiError`."""
        referred = iter(await self._referred([item.id for item in items if isinstance(item, ItemReference)]))
        return [item if isinstance(item, KeptItem) else next(referred) for item in items]

    async def keep(self, response: Response, input_items: Sequence[KeptItem]) -> Response:
        """The response, which says whether it is kept."""
        if self._store is None or not response.store:
            return response
        try:
            is_kept = await self._store.put(await asyncio.to_thread(_to_keep, response, input_items))
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
        return await asyncio.to_thread(_listed, chain)

    @property
    def _why_not(self) -> str:
        return _NOTHING_KEPT if self._store is None else _NOT_THIS_ONE

    async def _get(self, response_id: str) -> KeptResponse | None:
        with _faults_told():
            return None if self._store is None else await self._store.get(response_id)

    async def _conversation(self, response_id: str, *, max_bytes: int | None = None) -> Sequence[KeptResponse]:
        with _faults_told():
            return () if self._store is None else await self._store.conversation(response_id, max_bytes=max_bytes)

    async def _renew(self, chain: Sequence[KeptResponse]) -> None:
        """A conversation that was read can be gone on with, even if it will not be kept for longer."""
        try:
            if self._store is not None:
                await self._store.renew([one.id for one in chain])
        except StoreError as error:
            logger.warning("the conversation up to %s is not kept for longer: %s", chain[-1].id, error)

    async def _referred(self, item_ids: Sequence[str]) -> list[KeptItem]:
        """Every response is read once, however many references to its items there are, in whatever order."""
        if not item_ids:
            return []
        places = {item_id: place for item_id in item_ids if (place := place_of(item_id)) is not None}
        response_ids = {place.response_id for place in places.values()}
        kept = await self._get_all(response_ids)
        return await asyncio.to_thread(self._picked, item_ids, places, kept)

    async def _get_all(self, response_ids: Collection[str]) -> Sequence[KeptResponse]:
        if self._store is None:
            return ()
        max_bytes = _MAX_READ * self._max_conversation_bytes
        with _faults_told():
            try:
                return await self._store.get_all(response_ids, max_bytes=max_bytes)
            except ConversationTooLongError:
                raise ContextLengthExceededError(
                    f"The responses whose items 'input' refers to have more than the {max_bytes} bytes that are read "
                    "for one request. Send the items.",
                    param="input",
                ) from None

    def _picked(
        self, item_ids: Sequence[str], places: Mapping[str, ItemPlace], kept: Sequence[KeptResponse]
    ) -> list[KeptItem]:
        """Raises `ApiError`."""
        opened = {one.id: _opened(one) for one in kept}
        found: dict[str, _Found] = {}
        num_bytes = 0
        for item_id in item_ids:
            if item_id not in found:
                found[item_id] = self._find(item_id, places.get(item_id), opened)
            num_bytes += found[item_id].num_bytes
            if num_bytes > self._max_conversation_bytes:
                raise self._too_long("What 'input' refers to", num_bytes, param="input")
        items = dict(zip(found, parse_items([one.item for one in found.values()]), strict=True))
        return [items[item_id] for item_id in item_ids]

    def _find(self, item_id: str, place: ItemPlace | None, opened: Mapping[str, _Opened]) -> _Found:
        if place is not None and place.response_id in opened:
            items = opened[place.response_id].inputs if place.is_input else opened[place.response_id].outputs
            if place.position < len(items):
                item = _item(items[place.position])
                own_id = id_of_kept(item, place.response_id, place.position) if place.is_input else item["id"]
                if own_id == item_id:
                    return _Found(item, memoryview(items[place.position]).nbytes)
        raise ItemNotFoundError(item_id, self._why_not)

    def _too_long(self, what: str, num_bytes: int, *, param: str) -> ContextLengthExceededError:
        return ContextLengthExceededError(
            f"{what} has {num_bytes} bytes, more than the {self._max_conversation_bytes} that a request may have. "
            "Begin a new conversation with what matters of it.",
            param=param,
        )


class _Output(msgspec.Struct):
    """Of a response's body."""

    output: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A response's items, each still in JSON."""

    inputs: Sequence[msgspec.Raw]
    outputs: Sequence[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class _Found:
    item: Json
    num_bytes: int


_item = msgspec.json.Decoder(Json).decode
_items = msgspec.json.Decoder(list[Json]).decode
_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_output = msgspec.json.Decoder(_Output).decode


def _opened(kept: KeptResponse) -> _Opened:
    return _Opened(_raw_items(kept.input_items), _output(kept.body).output)


def _outputs(kept: KeptResponse) -> list[Json]:
    return [_item(one) for one in _output(kept.body).output]


def _conversation_of(chain: Sequence[KeptResponse]) -> list[KeptItem]:
    return parse_items([item for one in chain for item in (*_items(one.input_items), *_outputs(one))])


def _listed(chain: Sequence[KeptResponse]) -> list[Json]:
    """All that the last response was made from."""
    listed: list[Json] = []
    for one in chain:
        listed += items_in_full(parse_items(_items(one.input_items)), one.id)
        listed += _outputs(one) if one is not chain[-1] else ()
    return listed


def _to_keep(response: Response, input_items: Sequence[KeptItem]) -> KeptResponse:
    return KeptResponse(
        id=response.id,
        previous_id=response.previous_response_id,
        body=encode(response),
        input_items=encode(items_to_keep(input_items)),
    )


@contextmanager
def _faults_told() -> Iterator[None]:
    """A store that fails is our fault, whose details go into the log."""
    try:
        yield
    except StoreError as error:
        logger.error("kept responses cannot be reached: %s", error)  # noqa: TRY400  its traceback tells no more
        raise ServerError from error
