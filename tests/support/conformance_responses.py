"""What must hold of every reply of /v1/responses, whole and as a stream of events, whatever was asked.

Beside `conformance`, which says it of replies that are choices: here an answer is items, and a stream tells how they
grow.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

import httpx

from tests.support.conformance import Fields

PATH: Final = "/v1/responses"
ID_PREFIXES: Final = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}
ENDS: Final = {"completed": "response.completed", "incomplete": "response.incomplete"}
GROWING: Final = frozenset(
    ("response.output_text.delta", "response.reasoning_text.delta", "response.function_call_arguments.delta")
)


@dataclass(frozen=True, slots=True)
class Responded:
    """A response, from either way; ids are left out, which are new in every reply."""

    output: list[dict[str, Any]]
    status: str
    usage: dict[str, int]
    settings: dict[str, Any]
    """What it says of how it was made."""

    @property
    def text(self) -> str:
        return "".join(part["text"] for item in self.output if item["type"] == "message" for part in item["content"])

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of each."""
        return [(item["name"], item["arguments"]) for item in self.output if item["type"] == "function_call"]


def both_ways(http: httpx.Client, model: str, fields: Fields) -> Responded:
    """The whole response, after the streamed one said the same."""
    whole = ask(http, model, {name: value for name, value in fields.items() if name != "stream_options"})
    streamed = stream(http, model, fields)
    assert streamed == whole
    return whole


def ask(http: httpx.Client, model: str, fields: Fields) -> Responded:
    response = http.post(PATH, json={"model": model, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return _responded(response.json(), model)


def stream(http: httpx.Client, model: str, fields: Fields) -> Responded:
    response = http.post(PATH, json={"model": model, **fields, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    first, second, *told, last = _events_of(response.text)
    assert (first["type"], second["type"]) == ("response.created", "response.in_progress")
    assert first["response"] == second["response"]
    assert (first["response"]["status"], first["response"]["output"]) == ("in_progress", [])
    assert last["type"] == ENDS[last["response"]["status"]]
    assert last["response"]["id"] == first["response"]["id"]
    assert _grown(told) == last["response"]["output"]
    return _responded(last["response"], model)


def _events_of(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n\n")
    blocks = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def _grown(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that the events tell of: each is added, grows by what it will be, and is done."""
    added: list[dict[str, Any]] = []
    done: dict[int, dict[str, Any]] = {}
    texts: defaultdict[int, str] = defaultdict(str)
    for event in events:
        index = event["output_index"]
        assert index not in done, "nothing follows an item's end"
        if event["type"] == "response.output_item.added":
            assert index == len(added)
            assert event["item"]["status"] == "in_progress"
            added.append(event["item"])
        elif event["type"] == "response.output_item.done":
            assert (event["item"]["id"], event["item"]["type"]) == (added[index]["id"], added[index]["type"])
            assert _text_of(event["item"]) == texts[index]
            done[index] = event["item"]
        else:
            assert event["item_id"] == added[index]["id"]
            texts[index] += event["delta"] if event["type"] in GROWING else ""
    assert len(done) == len(added)
    return [done[index] for index in range(len(added))]


def _text_of(item: dict[str, Any]) -> str:
    text: str = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
    return text


def _responded(response: dict[str, Any], model: str) -> Responded:
    assert (response["object"], response["model"]) == ("response", model)
    assert response["id"].startswith("resp_")
    assert response["status"] in ENDS
    is_cut = response["status"] == "incomplete"
    assert response["incomplete_details"] == ({"reason": "max_output_tokens"} if is_cut else None)
    assert response["error"] is None
    output = response["output"]
    assert len({item["id"] for item in output}) == len(output)
    assert [item["status"] for item in output[:-1]] == ["completed"] * (len(output) - 1)
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 <= usage["input_tokens_details"]["cached_tokens"] <= usage["input_tokens"]
    told_anew = {"id", "created_at", "completed_at", "output", "usage"}
    return Responded(
        output=[_without_ids(item) for item in output],
        status=response["status"],
        usage={name: value for name, value in usage.items() if isinstance(value, int)},
        settings={name: value for name, value in response.items() if name not in told_anew},
    )


def _without_ids(item: dict[str, Any]) -> dict[str, Any]:
    assert item["id"].startswith(ID_PREFIXES[item["type"]])
    assert item["type"] != "function_call" or item["call_id"].startswith("call_")
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}
