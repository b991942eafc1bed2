"""Parts of an answer, put together."""

from __future__ import annotations

from gateway.answer import AnswerDelta, ToolCallDelta


def test_a_sum_has_one_delta_of_each_call() -> None:
    first = AnswerDelta("a", "r", (ToolCallDelta(0, "id", "f", "{"),))
    later = AnswerDelta("b", "", (ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "other", "g")))
    calls = (ToolCallDelta(0, "id", "f", "{}"), ToolCallDelta(1, "other", "g"))
    assert first + later == AnswerDelta("ab", "r", calls)
