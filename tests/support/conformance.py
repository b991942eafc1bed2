"""What must hold of every reply of a generation endpoint, whatever was asked: said once, for all endpoints and models.

`Endpoint.ask` and `Endpoint.stream` check what they get and hand it back in the same form, so that a streamed reply can
be compared with the whole one. A further endpoint is a further `Endpoint`; its cases are fields to send.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import pytest

Fields = Mapping[str, Any]

TOLERANCE = 1e-3
"""Of logprobs: those of a real model change in their last digits with what runs beside."""
FINISH_REASONS = {"stop", "length", "tool_calls"}


class Shape(Protocol):
    """How one endpoint's replies carry an answer."""

    whole_object: str
    chunk_object: str
    id_prefix: str

    def of_whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        """The answer of a choice."""

    def add(self, answer: dict[str, Any], choice: dict[str, Any]) -> None:
        """More of it, from a chunk's choice."""

    def is_empty(self, choice: dict[str, Any]) -> bool:
        """Whether a chunk's choice adds no answer."""

    def num_tokens(self, logprobs: dict[str, Any] | None) -> int: ...


class TextShape:
    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def of_whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {"text": choice["text"], "logprobs": choice["logprobs"]}

    def add(self, answer: dict[str, Any], choice: dict[str, Any]) -> None:
        answer["text"] = answer.get("text", "") + choice["text"]
        _add_lists(answer, choice["logprobs"])

    def is_empty(self, choice: dict[str, Any]) -> bool:
        return not choice["text"]

    def num_tokens(self, logprobs: dict[str, Any] | None) -> int:
        return len(logprobs["tokens"]) if logprobs else 0


class ChatShape:
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def of_whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        said = {name: value for name, value in choice["message"].items() if value}
        if calls := said.get("tool_calls"):
            said["tool_calls"] = [_told(call) for call in calls]
            assert len({call["id"] for call in calls}) == len(calls)
        return {**said, "logprobs": choice["logprobs"]}

    def add(self, answer: dict[str, Any], choice: dict[str, Any]) -> None:
        for name, value in choice["delta"].items():
            if name == "role":
                assert "role" not in answer, "the role is told once"
                answer["role"] = value
            elif name == "tool_calls":
                _add_tool_calls(answer.setdefault("tool_calls", []), value)
            elif value:
                answer[name] = answer.get(name, "") + value
        assert answer["role"] == "assistant", "the role comes first"
        _add_lists(answer, choice["logprobs"])

    def is_empty(self, choice: dict[str, Any]) -> bool:
        return not choice["delta"]

    def num_tokens(self, logprobs: dict[str, Any] | None) -> int:
        return len(logprobs["content"]) if logprobs else 0


def _add_lists(answer: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
    answer.setdefault("logprobs", None)
    if logprobs is not None:
        known = answer["logprobs"] or dict.fromkeys(logprobs)
        for name, values in logprobs.items():
            known[name] = values if known[name] is None else known[name] + values
        answer["logprobs"] = known


def _add_tool_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    for delta in deltas:
        if delta["index"] == len(calls):
            calls.append(_told({name: value for name, value in delta.items() if name != "index"}))
            continue
        assert set(delta) <= {"index", "function"}, "id and type are told once"
        assert set(delta["function"]) == {"arguments"}, "the name is told once"
        calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]


def _told(call: dict[str, Any]) -> dict[str, Any]:
    """A call without its id, which is new in every reply."""
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    return {"function": {**call["function"]}}


@dataclass(frozen=True, slots=True)
class Answered:
    """A reply, from either way."""

    answers: list[dict[str, Any]]
    finish_reasons: list[str]
    usage: dict[str, int] | None

    def is_like(self, other: Answered) -> bool:
        """But for the last digits of logprobs."""
        return (
            self.finish_reasons == other.finish_reasons
            and (self.usage == other.usage or None in (self.usage, other.usage))
            and _alike(self.answers, other.answers)
        )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=TOLERANCE)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One way to have something generated, over plain HTTP."""

    path: str
    shape: Shape
    needed: Fields
    """What a request must have beside the model."""

    def __str__(self) -> str:
        return self.path

    def body(self, model: str, fields: Fields) -> dict[str, Any]:
        return {"model": model, **self.needed, **fields}

    def num_choices(self, fields: Fields) -> int:
        return _num_prompts(fields.get("prompt")) * int(fields.get("n") or 1)

    def ask(self, http: httpx.Client, model: str, fields: Fields) -> Answered:
        """The whole reply, checked."""
        response = http.post(self.path, json=self.body(model, fields))
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        reply = response.json()
        assert (reply["object"], reply["model"]) == (self.shape.whole_object, model)
        assert reply["id"].startswith(self.shape.id_prefix)
        choices = reply["choices"]
        assert [choice["index"] for choice in choices] == list(range(self.num_choices(fields)))
        reasons = [choice["finish_reason"] for choice in choices]
        assert set(reasons) <= FINISH_REASONS
        self._check_logprobs(choices, reply["usage"], fields)
        return Answered([self.shape.of_whole(choice) for choice in choices], reasons, _counted(reply["usage"]))

    def stream(self, http: httpx.Client, model: str, fields: Fields) -> Answered:
        """The streamed reply, checked, as if it were whole."""
        with http.stream("POST", self.path, json=self.body(model, {**fields, "stream": True})) as response:
            text = response.read().decode()
            assert response.status_code == 200, text
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = _data_of(text)
        wants_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
        usage = _usage_chunk(chunks.pop())["usage"] if wants_usage else None
        for name, expected in (("object", self.shape.chunk_object), ("model", model)):
            assert {chunk[name] for chunk in chunks} == {expected}
        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
        assert chunks[0]["id"].startswith(self.shape.id_prefix)
        assert all(("usage" in chunk) is wants_usage and chunk.get("usage") is None for chunk in chunks)
        answers, reasons = self._collected([_only(chunk["choices"]) for chunk in chunks], self.num_choices(fields))
        return Answered(answers, reasons, None if usage is None else _counted(usage))

    def _collected(self, parts: list[dict[str, Any]], num_choices: int) -> tuple[list[dict[str, Any]], list[str]]:
        answers: dict[int, dict[str, Any]] = {}
        reasons: dict[int, str] = {}
        for part in parts:
            index = part["index"]
            assert index in answers or index == len(answers), "choices appear in the order of their indexes"
            assert index not in reasons, "nothing follows a choice's end"
            self.shape.add(answers.setdefault(index, {}), part)
            if part["finish_reason"] is not None:
                assert self.shape.is_empty(part), "the end is a chunk of its own"
                reasons[index] = part["finish_reason"]
        assert len(answers) == len(reasons) == num_choices
        return [answers[index] for index in range(num_choices)], [reasons[index] for index in range(num_choices)]

    def _check_logprobs(self, choices: list[dict[str, Any]], usage: dict[str, Any], fields: Fields) -> None:
        if fields.get("logprobs") is None or fields["logprobs"] is False:
            assert all(choice["logprobs"] is None for choice in choices)
        elif (fields.get("best_of") or 1) <= (fields.get("n") or 1):
            told = sum(self.shape.num_tokens(choice["logprobs"]) for choice in choices)
            echoed = usage["prompt_tokens"] * (fields.get("n") or 1) if fields.get("echo") else 0
            assert told == echoed + usage["completion_tokens"]


def _data_of(text: str) -> list[dict[str, Any]]:
    """The events' data, but the last."""
    assert text.endswith("\n\n")
    events = [event for event in text.removesuffix("\n\n").split("\n\n") if not event.startswith(":")]
    assert all(re.fullmatch(r"data: [^\n]+", event) for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def _usage_chunk(chunk: dict[str, Any]) -> dict[str, Any]:
    assert chunk["choices"] == []
    return chunk


def _counted(usage: dict[str, Any]) -> dict[str, int]:
    """Without what was cached, which the first of two requests changes for the second."""
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    return {name: value for name, value in usage.items() if isinstance(value, int)}


def _only(choices: list[dict[str, Any]]) -> dict[str, Any]:
    (choice,) = choices
    return choice


def _num_prompts(prompt: Any) -> int:
    """Token ids are one prompt, all other lists one for each item."""
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def both_ways(http: httpx.Client, endpoint: Endpoint, model: str, fields: Fields) -> Answered:
    """The whole reply, after the streamed one said the same."""
    whole_fields = {name: value for name, value in fields.items() if name != "stream_options"}
    whole = endpoint.ask(http, model, whole_fields)
    streamed = endpoint.stream(http, model, fields)
    assert streamed.is_like(whole), f"streamed: {streamed}\nwhole: {whole}"
    return whole


def error_of(response: httpx.Response) -> tuple[int, str, str | None, str | None]:
    """Status, type, code and param of what must be an error of OpenAI's form."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return response.status_code, error["type"], error["code"], error["param"]


def one_by_one(parameters: Mapping[str, Fields]) -> list[Any]:
    return [pytest.param(fields, id=name) for name, fields in parameters.items()]


def in_pairs(parameters: Mapping[str, Fields], *, but: Iterable[tuple[str, str]] = ()) -> list[Any]:
    """Every two of them, `but` those that exclude each other; of a field that both have, the later one's value."""
    pairs = [pair for pair in itertools.combinations(parameters, 2) if pair not in set(but)]
    return [pytest.param({**parameters[one], **parameters[other]}, id=f"{one}, {other}") for one, other in pairs]


def across(
    new: Mapping[str, Fields], others: Mapping[str, Fields], *, but: Iterable[tuple[str, str]] = ()
) -> list[Any]:
    """Each of the new ones with each of the others, `but` those that exclude each other; of a field that both have, the
    new one's value."""
    pairs = [pair for pair in itertools.product(new, others) if pair not in set(but)]
    return [pytest.param({**others[other], **new[one]}, id=f"{one}, {other}") for one, other in pairs]
