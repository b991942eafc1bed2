"""What a gateway keeps, as clients see it: with a store, without one, and with one that fails."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.errors import (
    ContextLengthExceededError,
    ItemNotFoundError,
    PreviousResponseNotFoundError,
    ResponseNotFoundError,
    ServerError,
)
from gateway.kept_responses import KeptResponses
from gateway.protocol.response_items import ItemReference, Message
from gateway.protocol.response_objects import OutputMessage, OutputText, Response
from gateway.protocol.responses import encode
from gateway.response_ids import new_response_id, output_item_id
from gateway.response_store import KeptResponse, ResponseStore

NOTHING = KeptResponses(None, max_conversation_bytes=10_000)


def finished(text: str, previous_id: str | None = None) -> Response:
    response_id = new_response_id()
    content = (OutputText(text=text),)
    return Response(
        id=response_id, created_at=7, status="completed", model="m", reasoning={}, store=True, temperature=1.0, text={},
        tool_choice="auto", top_p=1.0, previous_response_id=previous_id,
        output=(OutputMessage(id=output_item_id("msg", response_id, 0), status="completed", content=content),),
    )  # fmt: skip


def said(text: str) -> Message:
    return Message(role="user", content=text)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(tmp_path / "responses.db", max_bytes=10_000, keep_s=60)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def kept(store: ResponseStore) -> KeptResponses:
    return KeptResponses(store, max_conversation_bytes=3_000)


async def test_a_conversation_is_gone_on_with(kept: KeptResponses) -> None:
    first = await kept.keep(finished("Hello."), [said("Hi.")])
    second = await kept.keep(finished("Fine.", first.id), [said("How are you?")])
    assert [item.text for item in await kept.items_before(second.id) if isinstance(item, Message)] == [
        "Hi.", "Hello.", "How are you?", "Fine.",
    ]  # fmt: skip
    assert await kept.items_before(None) == []
    listed = await kept.input_items(second.id)
    assert [item["content"][0]["text"] for item in listed] == ["Hi.", "Hello.", "How are you?"]


async def test_a_response_is_read_as_it_was_sent_until_it_is_deleted(kept: KeptResponses) -> None:
    response = await kept.keep(finished("Hello."), [said("Hi.")])
    assert await kept.body(response.id) == encode(response)
    await kept.delete(response.id)
    for asked in (kept.body, kept.delete, kept.input_items):
        with pytest.raises(ResponseNotFoundError, match="'store' false or deleted"):
            await asked(response.id)
    with pytest.raises(PreviousResponseNotFoundError):
        await kept.items_before(response.id)


async def test_a_reference_stands_for_the_item_that_has_its_id(kept: KeptResponses) -> None:
    response = await kept.keep(finished("Hello."), [said("Hi.")])
    [asked] = await kept.input_items(response.id)
    references = [ItemReference(id=response.output[0].id), ItemReference(id=asked["id"])]
    followed = await kept.follow([*references, said("Bye.")])
    assert [item.text for item in followed if isinstance(item, Message)] == ["Hello.", "Hi.", "Bye."]


async def test_each_response_that_is_referred_to_is_read_once(
    kept: KeptResponses, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = [await kept.keep(finished(text), [said("Hi.")]) for text in ("a", "b")]
    reads: list[str] = []
    get = ResponseStore._get

    def counted(of: ResponseStore, database: sqlite3.Connection, response_id: str) -> KeptResponse | None:
        reads.append(response_id)
        return get(of, database, response_id)

    monkeypatch.setattr(ResponseStore, "_get", counted)
    followed = await kept.follow([ItemReference(id=one.output[0].id) for one in responses * 3])
    assert [item.text for item in followed if isinstance(item, Message)] == ["a", "b"] * 3
    assert sorted(reads) == sorted(one.id for one in responses)


async def test_references_to_many_large_responses_are_not_followed(kept: KeptResponses, store: ResponseStore) -> None:
    responses = [await kept.keep(finished("Hello."), [said("x" * 1_400)]) for _ in range(3)]
    references = [ItemReference(id=one.output[0].id) for one in responses]
    assert len(await kept.follow(references)) == 3
    small = KeptResponses(store, max_conversation_bytes=1_200)
    assert len(await small.follow(references[:2])) == 2
    with pytest.raises(ContextLengthExceededError, match="more than the 4800 bytes") as caught:
        await small.follow(references)
    assert caught.value.param == "input"


async def test_what_was_taken_can_be_gone_on_with(store: ResponseStore) -> None:
    items = [said("w")] * 100
    kept = KeptResponses(store, max_conversation_bytes=len(encode([{"role": "user", "content": "w"}] * 100)) + 1_000)
    response = await kept.keep(finished("Hello."), items)
    assert len(await kept.items_before(response.id)) == 101


async def test_a_conversation_is_gone_on_with_while_nothing_can_be_written(
    kept: KeptResponses, store: ResponseStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    response = await kept.keep(finished("Hello."), [said("Hi.")])
    await store._file.run(store._file._close)
    assert len(await kept.items_before(response.id)) == 2
    assert "is not kept for longer" in caplog.text


def _other_ids(item_id: str) -> list[str]:
    return ["fc" + item_id.removeprefix("msg"), item_id[:-1] + "00", item_id[:-1] + "7"]


async def test_a_reference_must_be_the_whole_id(kept: KeptResponses) -> None:
    response = await kept.keep(finished("Hello."), [said("Hi.")])
    [asked] = await kept.input_items(response.id)
    for item_id in _other_ids(asked["id"]) + _other_ids(response.output[0].id):
        with pytest.raises(ItemNotFoundError):
            await kept.follow([ItemReference(id=item_id)])


@pytest.mark.parametrize("item_id", ["msg_1", f"msg_{'0' * 32}o0"])
async def test_a_reference_to_nothing_is_an_error(kept: KeptResponses, item_id: str) -> None:
    for anybody in (kept, NOTHING):
        with pytest.raises(ItemNotFoundError) as caught:
            await anybody.follow([ItemReference(id=item_id)])
        assert (caught.value.status, caught.value.param) == (404, "input")


async def test_an_item_may_not_be_referred_to_without_end(kept: KeptResponses) -> None:
    response = await kept.keep(finished("x" * 1_000), [said("Hi.")])
    reference = ItemReference(id=response.output[0].id)
    assert len(await kept.follow([reference] * 2)) == 2
    with pytest.raises(ContextLengthExceededError, match="more than the 3000") as caught:
        await kept.follow([reference] * 3)
    assert caught.value.param == "input"


async def test_a_conversation_that_is_too_long_is_not_read(kept: KeptResponses) -> None:
    response = await kept.keep(finished("x" * 3_000), [said("Hi.")])
    with pytest.raises(ContextLengthExceededError, match="more than the 3000") as caught:
        await kept.items_before(response.id)
    assert caught.value.param == "previous_response_id"


async def test_without_a_store_nothing_is_kept_and_it_says_why() -> None:
    assert not NOTHING.keeps(None)
    assert (await NOTHING.keep(msgspec.structs.replace(finished(""), store=False), [])).store is False
    with pytest.raises(PreviousResponseNotFoundError, match="AVIARY_RESPONSES_STORE is not set"):
        await NOTHING.items_before("resp_1")
    for asked in (NOTHING.body, NOTHING.delete, NOTHING.input_items):
        with pytest.raises(ResponseNotFoundError, match="AVIARY_RESPONSES_STORE is not set"):
            await asked("resp_1")


def test_a_store_keeps_unless_it_is_told_not_to(kept: KeptResponses) -> None:
    assert [kept.keeps(wanted) for wanted in (None, True, False)] == [True, True, False]


async def test_a_response_that_is_not_to_be_kept_is_not(kept: KeptResponses) -> None:
    response = await kept.keep(msgspec.structs.replace(finished("Hello."), store=False), [said("Hi.")])
    with pytest.raises(ResponseNotFoundError):
        await kept.body(response.id)


async def test_a_store_that_fails_costs_no_answer_and_tells_no_details(
    kept: KeptResponses, store: ResponseStore, caplog: pytest.LogCaptureFixture
) -> None:
    response = finished("Hello.")
    await store._file.read(lambda _: store._file._close_reading())
    await store._file.run(store._file._close)
    assert (await kept.keep(response, [said("a secret")])).store is False
    for asked in (kept.body, kept.delete, kept.input_items, kept.items_before):
        with pytest.raises(ServerError) as caught:
            await asked(response.id)
        assert "responses.db" not in caught.value.message
    assert "responses.db" in caplog.text
    assert "a secret" not in caplog.text


async def test_what_does_not_fit_the_store_is_not_kept(kept: KeptResponses) -> None:
    assert (await kept.keep(finished("x" * 10_000), [said("Hi.")])).store is False
