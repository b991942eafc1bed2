"""Which replica a request goes to: arithmetic, chance and two bounded maps, without clock, task or channel.

A request that begins like an earlier one goes where that prefix is in the KV cache, one of a known session where the
session was last; all others go where least is left to compute. A preferred replica is taken only while its load is at
most `BOUND` times the mean plus what is saved there (consistent hashing with bounded loads, arXiv 1608.01350), so a
hot prefix spreads over as many replicas as it needs. `ModelLane.assign`, the only user, asks request by request.
"""

from __future__ import annotations

import random
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from itertools import chain
from typing import Final

from gateway.token_estimates import BYTES_PER_TOKEN
from model_registry.contract import ChatMessage, ChatPrompt, InfillPrompt, Prompt, TextPrompt, TokenPrompt

BLOCK_TOKENS: Final = 64
BLOCK_BYTES: Final = BLOCK_TOKENS * BYTES_PER_TOKEN
"""A shorter common prefix saves a replica too little to be worth a preference."""
MAX_HASHED_BYTES: Final = 32 * 1024
"""Prompts that are alike so far belong together, whatever comes after."""
MAX_PREFIXES: Final = 32_768
MAX_SESSIONS: Final = 8_192
MAX_SESSION_CHARS: Final = 1_024
FEW_REPLICAS: Final = 4
BOUND: Final = 1.25
SLACK_TOKENS: Final = 512
"""So that a nearly idle pool does not tear apart what belongs together: about two requests more than others have."""
MIN_FREE_KV: Final = 0.1
_TOKEN_MASK: Final = 0xFFFF_FFFF


class RoutingPolicy(StrEnum):
    """What an operator may choose between."""

    AFFINITY = "affinity"
    LOAD = "load"


class RoutingReason(StrEnum):
    """Why a request went where it went."""

    PREFIX = "prefix"
    SESSION = "session"
    LOAD = "load"
    """Nothing was known of it."""
    OVERFLOW = "overflow"
    """Where it should have gone there was too much to do, so load decided."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a request is recognised by; empty where nothing is to be remembered."""

    prefixes: tuple[bytes, ...] = ()
    """Hash of the prompt's first block, of its first two, and so on."""
    session: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One request, as far as its way is concerned."""

    fingerprint: Fingerprint
    num_prompt_tokens: int
    num_tokens_to_generate: int
    avoid: Collection[str] = ()
    """Replicas that were lost under it."""


@dataclass(slots=True, kw_only=True)
class Candidate:
    """One connected replica while requests are handed out; every request that goes to it adds to it."""

    replica_id: str
    room: int
    """Requests it may be sent now."""
    num_own_tokens: int = 0
    """Prompt tokens to compute and tokens to generate for everything that this gateway sent it."""
    num_foreign_tokens: int = 0
    """The same for what others sent, as far as it told."""
    kv_cache_usage: float = 0.0

    @property
    def load(self) -> float:
        """Its tokens, weighing more the less KV cache is free: a newcomer might have to wait for room there."""
        num_tokens = self.num_own_tokens + self.num_foreign_tokens
        return num_tokens / max(1.0 - self.kv_cache_usage, MIN_FREE_KV)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    replica_id: str
    reason: RoutingReason
    num_prompt_tokens: int
    """Those that the replica has to compute, as far as is known here."""


class Router:
    """The routing of one model in one gateway.

    What it remembers are hashes under a random key of its own: no text, no name of a session, nothing that could be
    compared with another model's or process's.
    """

    def __init__(self, policy: RoutingPolicy = RoutingPolicy.AFFINITY, draws: random.Random | None = None) -> None:
        """`draws` decides between equals; tests hand in their own."""
        self._policy = policy
        self._draws = draws or random.Random()  # noqa: S311  a choice between replicas is no secret
        self._key = secrets.token_bytes(32)
        self._prefixes = _Memory(MAX_PREFIXES)
        self._sessions = _Memory(MAX_SESSIONS)
        self._connected: frozenset[str] = frozenset()

    def retain(self, connected: Iterable[str]) -> None:
        """Forgets what went to any other replica: one that comes back has an empty cache, for all we know."""
        before, self._connected = self._connected, frozenset(connected)
        if gone := before - self._connected:
            self._prefixes.forget(gone)
            self._sessions.forget(gone)

    def fingerprint(self, prompt: Prompt, session: str | None) -> Fingerprint:
        """Takes time with the prompt's length, up to `MAX_HASHED_BYTES`; none where there is no choice to be made."""
        if self._policy is RoutingPolicy.LOAD or len(self._connected) < 2:
            return Fingerprint()
        return Fingerprint(tuple(self._prefix_hashes(prompt)), self._session_hash(session) if session else None)

    def route(self, demand: Demand, candidates: Sequence[Candidate]) -> Route:
        """The way of one request, which is noted. `candidates` are all connected replicas; one must have room."""
        chosen, reason = self._choose(demand, candidates)
        num_known = self._num_known_tokens(demand.fingerprint.prefixes, chosen.replica_id)
        num_prompt_tokens = max(demand.num_prompt_tokens - num_known, 0)
        chosen.room -= 1
        chosen.num_own_tokens += num_prompt_tokens + demand.num_tokens_to_generate
        self._note(demand.fingerprint, chosen.replica_id)
        return Route(replica_id=chosen.replica_id, reason=reason, num_prompt_tokens=num_prompt_tokens)

    # Choosing

    def _choose(self, demand: Demand, candidates: Sequence[Candidate]) -> tuple[Candidate, RoutingReason]:
        able = [one for one in candidates if one.room]
        able = [one for one in able if one.replica_id not in demand.avoid] or able
        holders, num_saved = self._holders(demand.fingerprint.prefixes)
        last = () if demand.fingerprint.session is None else self._sessions.replicas(demand.fingerprint.session)
        if not holders and not last:
            return self._least_loaded(able), RoutingReason.LOAD
        bound = BOUND * sum(one.load for one in candidates) / len(candidates)
        # Nobody should wait for more work than is saved by it.
        slack = min(num_saved, SLACK_TOKENS)
        with_prefix = [one for one in able if one.replica_id in holders and one.load <= bound + slack]
        if with_prefix:
            of_session = [one for one in with_prefix if one.replica_id in last]
            return self._least_loaded(of_session or with_prefix), RoutingReason.PREFIX
        of_session = [one for one in able if one.replica_id in last and one.load <= bound + SLACK_TOKENS]
        if of_session:
            return self._least_loaded(of_session), RoutingReason.SESSION
        return self._least_loaded(able), RoutingReason.OVERFLOW

    def _least_loaded(self, candidates: Sequence[Candidate]) -> Candidate:
        """The least loaded of all, or of two drawn at random when others are believed to have sent most of the load.

        What others sent is only known from the last frames, to all gateways alike: all of them sending to one minimum
        would make it the maximum. In simulation (8 gateways, 8 replicas of 32 sequences) the fullest replica has
        32 % more than the mean where all take the minimum, 9 % where they draw two. What this gateway sent it knows
        exactly, and among few replicas two drawn would too often both be busy. Equals are always told apart by chance.
        """
        num_own = sum(one.num_own_tokens for one in candidates)
        num_foreign = sum(one.num_foreign_tokens for one in candidates)
        is_known = len(candidates) <= FEW_REPLICAS or num_own >= num_foreign
        drawn = self._draws.sample(candidates, len(candidates) if is_known else 2)
        return min(drawn, key=lambda one: one.load)

    # Remembering

    def _holders(self, prefixes: Sequence[bytes]) -> tuple[tuple[str, ...], int]:
        """The replicas that were sent the longest prefix that any of them was, and its tokens."""
        for num_blocks in range(len(prefixes), 0, -1):
            if holders := self._prefixes.replicas(prefixes[num_blocks - 1]):
                return holders, num_blocks * BLOCK_TOKENS
        return (), 0

    def _num_known_tokens(self, prefixes: Sequence[bytes], replica_id: str) -> int:
        """Tokens of the longest prefix that this replica was sent."""
        for num_blocks in range(len(prefixes), 0, -1):
            if replica_id in self._prefixes.replicas(prefixes[num_blocks - 1]):
                return num_blocks * BLOCK_TOKENS
        return 0

    def _note(self, fingerprint: Fingerprint, replica_id: str) -> None:
        # The longest first, so that the shortest, which most requests share, is forgotten last.
        for prefix in reversed(fingerprint.prefixes):
            self._prefixes.add(prefix, replica_id)
        if fingerprint.session is not None:
            self._sessions.put(fingerprint.session, replica_id)

    # Recognising

    def _prefix_hashes(self, prompt: Prompt) -> Iterable[bytes]:
        text = memoryview(_beginning(prompt))
        hasher = blake2b(digest_size=8, key=self._key, person=b"prefix")
        for end in range(BLOCK_BYTES, len(text) + 1, BLOCK_BYTES):
            hasher.update(text[end - BLOCK_BYTES : end])
            yield hasher.digest()

    def _session_hash(self, session: str) -> bytes:
        return blake2b(session[:MAX_SESSION_CHARS].encode(), digest_size=8, key=self._key, person=b"session").digest()


class _Memory:
    """Which replicas a key went to, for a bounded number of keys; the least recently used are forgotten first."""

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._replicas: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def replicas(self, key: bytes) -> tuple[str, ...]:
        return self._replicas.get(key, ())

    def add(self, key: bytes, replica_id: str) -> None:
        """It went to this replica too."""
        known = self._replicas.get(key, ())
        self._keep(key, known if replica_id in known else (*known, replica_id))

    def put(self, key: bytes, replica_id: str) -> None:
        """From now on it is this replica's alone."""
        self._keep(key, (replica_id,))

    def forget(self, gone: frozenset[str]) -> None:
        """Looks at every key: about 20 ms when the memory is full, which is as rare as replicas that go away."""
        for key in [key for key, replicas in self._replicas.items() if not gone.isdisjoint(replicas)]:
            if left := tuple(one for one in self._replicas[key] if one not in gone):
                self._replicas[key] = left
            else:
                del self._replicas[key]

    def _keep(self, key: bytes, replicas: tuple[str, ...]) -> None:
        self._replicas[key] = replicas
        self._replicas.move_to_end(key)
        if len(self._replicas) > self._max_keys:
            self._replicas.popitem(last=False)


def _beginning(prompt: Prompt) -> bytes:
    """The prompt's first bytes in the order in which it will be rendered; only ever compared with each other."""
    match prompt:
        case TokenPrompt(token_ids):
            head = token_ids[: MAX_HASHED_BYTES // BYTES_PER_TOKEN]
            # What is no token id is refused by the worker, so what it is taken for does not matter.
            return array("I", [token_id & _TOKEN_MASK for token_id in head]).tobytes()
        case ChatPrompt(messages, tools):
            # Templates put tools first.
            said = (part for message in messages for part in (message.role, "\n", *_said(message), "\n"))
            return _first_bytes(chain(map(str, tools), said))
        case InfillPrompt(beginning, end):
            return _first_bytes((beginning, end))
        case TextPrompt(segments):
            return _first_bytes(segment.text for segment in segments)


def _said(message: ChatMessage) -> Iterable[str]:
    yield message.content
    for call in message.tool_calls:
        yield from (call.name, call.arguments)


def _first_bytes(parts: Iterable[str]) -> bytes:
    taken: list[str] = []
    num_left = MAX_HASHED_BYTES
    for part in parts:
        taken.append(part[:num_left])
        num_left -= len(taken[-1])
        if not num_left:
            break
    return "".join(taken).encode()[:MAX_HASHED_BYTES]
