"""A connection's outbox: everything arrives, in order, however slowly it is read."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from model_registry.contract import FinishReason, SequenceOutput
from workers.outbox import Outbox


def output(request_id: str, text: str, token: int, *, final: bool = False) -> SequenceOutput:
    reason = FinishReason.STOP if final else None
    return SequenceOutput(request_id=request_id, text=text, token_ids=(token,), finish_reason=reason)


async def test_what_is_put_is_taken_at_once() -> None:
    outbox = Outbox()
    outbox.put([output("a", "x", 1)])
    assert await outbox.take(0) == (output("a", "x", 1),)


async def test_a_waiting_reader_gets_the_next_output_without_waiting_for_more() -> None:
    outbox = Outbox()
    reader = asyncio.create_task(outbox.take(60))
    await asyncio.sleep(0)
    outbox.put([output("a", "x", 1)])
    assert await asyncio.wait_for(reader, 1) == (output("a", "x", 1),)


async def test_an_idle_outbox_gives_nothing_after_the_timeout() -> None:
    assert await Outbox().take(0.001) == ()


async def test_a_reader_that_fell_behind_gets_one_output_per_sequence() -> None:
    outbox = Outbox()
    outbox.put([output("a", "x", 1), output("b", "p", 7)])
    outbox.put([output("a", "y", 2, final=True)])
    first, second = await outbox.take(0)
    assert (first.text, first.token_ids, first.finish_reason) == ("xy", (1, 2), FinishReason.STOP)
    assert (second.text, second.finish_reason) == ("p", None)
    assert len(outbox) == 0


async def test_a_discarded_sequence_is_not_told_any_more() -> None:
    outbox = Outbox()
    outbox.put([output("a", "x", 1), output("b", "y", 2)])
    outbox.discard(["a", "unknown"])
    assert await outbox.take(0) == (output("b", "y", 2),)


async def test_waiting_until_written_ends_when_what_was_taken_has_left() -> None:
    outbox = Outbox()
    outbox.put([output("a", "x", 1)])
    waiting = asyncio.create_task(outbox.wait_until_written())
    await asyncio.sleep(0)
    assert not waiting.done()
    await outbox.take(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.note_written()
    await asyncio.wait_for(waiting, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3), st.booleans()), max_size=30))
def test_no_text_is_lost_or_reordered_at_any_reading_speed(steps: list[tuple[str, str, bool]]) -> None:
    async def run() -> dict[str, str]:
        outbox, read = Outbox(), dict.fromkeys("abc", "")
        for index, (request_id, text, reads) in enumerate(steps):
            outbox.put([output(request_id, text, index)])
            for taken in await outbox.take(0) if reads else ():
                read[taken.request_id] += taken.text
        for taken in await outbox.take(0):
            read[taken.request_id] += taken.text
        return read

    expected = {name: "".join(text for other, text, _ in steps if other == name) for name in "abc"}
    assert asyncio.run(run()) == expected
