"""Clients that stream completions without a pause, and what became of each of their requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

DEADLINE_S = 40.0
"""Nothing that was accepted may take longer: a stream that is still open then hangs."""


class End(StrEnum):
    """The ways a request may end. Nobody may see the last two."""

    COMPLETE = "complete"
    TYPED_ERROR = "typed error"
    REFUSED = "refused"
    BROKEN = "broken"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Ended:
    end: End
    at: float
    """By `time.monotonic`."""
    num_pieces: int
    """Pieces of text that came before it."""
    detail: str = ""


@dataclass
class StreamLoad:
    """What `num_clients` clients met so far."""

    url: str
    model: str
    prompt: str
    ended: list[Ended] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return Counter(str(one.end) for one in self.ended)

    @property
    def failures(self) -> list[Ended]:
        return [one for one in self.ended if one.end is not End.COMPLETE]

    def since(self, moment: float) -> list[Ended]:
        return [one for one in self.ended if one.at >= moment]

    async def run_client(self, http: httpx.AsyncClient, num_requests: int | None = None) -> None:
        """One request after the other; without a number, for ever."""
        for _ in itertools.count() if num_requests is None else range(num_requests):
            self.ended.append(await self._one(http))

    async def _one(self, http: httpx.AsyncClient) -> Ended:
        pieces: list[str] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                end, detail = await self._stream(http, pieces)
        except TimeoutError:
            end, detail = End.HUNG, ""
        except httpx.TransportError as error:
            end, detail = End.BROKEN, repr(error)
        return Ended(end, time.monotonic(), len(pieces), detail)

    async def _stream(self, http: httpx.AsyncClient, pieces: list[str]) -> tuple[End, str]:
        body = {"model": self.model, "prompt": self.prompt, "max_tokens": len(self.prompt), "stream": True}
        async with http.stream("POST", f"{self.url}/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                detail = (await response.aread()).decode()
                refused = response.status_code in (429, 503) and "retry-after" in response.headers
                return (End.REFUSED if refused else End.TYPED_ERROR), detail
            finish_reason, error = None, None
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return self._verdict("".join(pieces), finish_reason)
                if line.startswith("data: "):
                    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    error = event.get("error", error)
                    for choice in event.get("choices", ()):
                        finish_reason = choice["finish_reason"] or finish_reason
                        pieces += [choice["text"]] if choice["text"] else []
            if error is not None and {"message", "type", "param", "code"} <= set(error):
                return End.TYPED_ERROR, str(error)
            return End.BROKEN, "the stream just ended"

    def _verdict(self, text: str, finish_reason: str | None) -> tuple[End, str]:
        if text == self.prompt and finish_reason is not None:
            return End.COMPLETE, ""
        return End.BROKEN, f"{text!r} {finish_reason}"


@contextlib.asynccontextmanager
async def stream_load(url: str, model: str, prompt: str, num_clients: int) -> AsyncIterator[StreamLoad]:
    load = StreamLoad(url, model, prompt)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=DEADLINE_S, limits=limits) as http:
        clients = [asyncio.create_task(load.run_client(http)) for _ in range(num_clients)]
        try:
            yield load
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
