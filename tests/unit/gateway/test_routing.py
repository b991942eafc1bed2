"""Which replica a request goes to: what is recognised, what is remembered, and that balance comes first."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import routing
from gateway.routing import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    BOUND,
    MAX_HASHED_BYTES,
    SLACK_TOKENS,
    Candidate,
    Demand,
    Fingerprint,
    Route,
    Router,
    RoutingPolicy,
    RoutingReason,
)
from gateway.token_estimates import EXPECTED_TOKENS, tokens_left
from model_registry.contract import ChatMessage, ChatPrompt, Prompt, TextPrompt, TextSegment, TokenPrompt, ToolCall

BLOCK = "x" * BLOCK_BYTES
ROOM = 1_000


def text(value: str) -> TextPrompt:
    return TextPrompt((TextSegment(value, trusted=False),))


def chat(*contents: str) -> ChatPrompt:
    roles = ("user", "assistant")
    return ChatPrompt(tuple(ChatMessage(roles[index % 2], content) for index, content in enumerate(contents)))


def router_of(replica_ids: Iterable[str], policy: RoutingPolicy = RoutingPolicy.AFFINITY, seed: int = 1) -> Router:
    router = Router(policy, random.Random(seed))
    router.retain(replica_ids)
    return router


def idle(names: Iterable[str], **num_own_tokens: int) -> list[Candidate]:
    return [Candidate(replica_id=name, room=ROOM, num_own_tokens=num_own_tokens.get(name, 0)) for name in names]


def send(
    router: Router,
    candidates: Sequence[Candidate],
    prompt: Prompt,
    session: str | None = None,
    *,
    num_prompt_tokens: int = 1_000,
    avoid: Sequence[str] = (),
) -> Route:
    demand = Demand(
        fingerprint=router.fingerprint(prompt, session),
        num_prompt_tokens=num_prompt_tokens,
        num_tokens_to_generate=100,
        avoid=avoid,
    )
    return router.route(demand, candidates)


def known_replicas(router: Router) -> set[str]:
    """All that are remembered for anything."""
    remembered = [*router._prefixes._replicas.values(), *router._sessions._replicas.values()]
    return {replica_id for replica_ids in remembered for replica_id in replica_ids}


# What is recognised


def test_prompts_that_begin_alike_have_as_many_hashes_in_common_as_blocks() -> None:
    router = router_of("ab")
    one = router.fingerprint(text(BLOCK + BLOCK + "one" + BLOCK), None).prefixes
    two = router.fingerprint(text(BLOCK + BLOCK + "two" + BLOCK), None).prefixes
    assert len(one) == len(two) == 3
    assert [left == right for left, right in zip(one, two, strict=True)] == [True, True, False]


def test_a_block_is_known_by_everything_before_it() -> None:
    router = router_of("ab")
    one = router.fingerprint(text("a" * BLOCK_BYTES + BLOCK), None).prefixes
    two = router.fingerprint(text("b" * BLOCK_BYTES + BLOCK), None).prefixes
    assert not set(one) & set(two)


def test_a_conversation_that_goes_on_begins_as_it_did() -> None:
    router = router_of("ab")
    turn = router.fingerprint(chat("q" * 1_000), None).prefixes
    next_turn = router.fingerprint(chat("q" * 1_000, "answer", "and then?" * 100), None).prefixes
    assert next_turn[: len(turn)] == turn
    assert len(next_turn) > len(turn) == 3


def test_the_same_text_in_another_role_is_another_beginning() -> None:
    router = router_of("ab")
    said = ChatPrompt((ChatMessage("system", BLOCK),))
    asked = ChatPrompt((ChatMessage("user", BLOCK),))
    assert router.fingerprint(said, None) != router.fingerprint(asked, None)


def test_other_tools_and_other_calls_are_another_beginning() -> None:
    router = router_of("ab")
    call, other = (ChatMessage("assistant", "", tool_calls=(ToolCall("a", "f", BLOCK + one),)) for one in "ab")
    plain = ChatPrompt((ChatMessage("user", BLOCK * 2),))
    with_tools = ChatPrompt(plain.messages, ({"name": "f"},))
    prints = [router.fingerprint(one, None) for one in (plain, with_tools)]
    assert prints[0].prefixes[0] != prints[1].prefixes[0]
    called = [router.fingerprint(ChatPrompt((one, *plain.messages)), None) for one in (call, other)]
    assert called[0].prefixes[0] == called[1].prefixes[0]
    assert called[0].prefixes[1] != called[1].prefixes[1]


def test_token_ids_are_recognised_in_blocks_too_even_such_as_no_model_has() -> None:
    router = router_of("ab")
    ids = tuple(range(2 * BLOCK_TOKENS))
    one = router.fingerprint(TokenPrompt((*ids, 7)), None).prefixes
    two = router.fingerprint(TokenPrompt((*ids, -1, 2**64)), None).prefixes
    assert len(one) == 2
    assert one == two


def test_prompts_shorter_than_a_block_are_not_remembered() -> None:
    assert router_of("ab").fingerprint(text("x" * (BLOCK_BYTES - 1)), None) == Fingerprint()


def test_a_huge_prompt_costs_no_more_than_its_beginning() -> None:
    router = router_of("ab")
    huge = ("é" * MAX_HASHED_BYTES, "y" * MAX_HASHED_BYTES)
    for prompt in (text("".join(huge)), chat(*huge), TokenPrompt(tuple(range(MAX_HASHED_BYTES)))):
        assert len(router.fingerprint(prompt, None).prefixes) == MAX_HASHED_BYTES // BLOCK_BYTES


def test_nothing_is_hashed_where_there_is_no_choice_or_load_alone_decides() -> None:
    for router in (router_of("a"), router_of("ab", RoutingPolicy.LOAD)):
        assert router.fingerprint(text(BLOCK), "session") == Fingerprint()


def test_hashes_of_two_models_or_processes_have_nothing_in_common() -> None:
    one, two = (router_of("ab").fingerprint(text(BLOCK), "session") for _ in range(2))
    assert one.prefixes != two.prefixes
    assert one.session != two.session


def test_neither_text_nor_session_is_kept() -> None:
    router = router_of("ab")
    send(router, idle("ab"), text("of a client" * 100), "name of a client")
    kept = [*router._prefixes._replicas, *router._sessions._replicas]
    assert {len(key) for key in kept} == {8}
    assert not any(b"client" in key or b"name" in key for key in kept)


# Where a request goes


def test_a_prefix_that_is_known_is_gone_back_to() -> None:
    router = router_of("abc")
    first = send(router, idle("abc"), text(BLOCK * 4 + "one"))
    again = send(router, idle("abc"), text(BLOCK * 4 + "two"))
    assert first.reason is RoutingReason.LOAD
    assert (again.replica_id, again.reason) == (first.replica_id, RoutingReason.PREFIX)


def test_the_longest_known_prefix_wins() -> None:
    router = router_of("abc")
    send(router, idle("abc", b=1, c=1), text(BLOCK))
    # More to do than one block is worth: the longer prompt goes elsewhere, and is known there.
    longer = send(router, idle("abc", a=9_000, c=1), text(BLOCK * 5))
    assert (longer.replica_id, longer.reason) == ("b", RoutingReason.OVERFLOW)
    assert {send(router, idle("abc"), text(BLOCK * 5 + str(n))).replica_id for n in range(9)} == {"b"}


def test_of_two_replicas_with_the_prefix_the_less_loaded_gets_it() -> None:
    router = router_of("abc")
    send(router, idle("abc", b=1, c=1), text(BLOCK * 9))
    send(router, idle("abc", a=9_000, c=1), text(BLOCK * 9))
    route = send(router, idle("abc", a=80, b=90), text(BLOCK * 9))
    assert (route.replica_id, route.reason) == ("a", RoutingReason.PREFIX)


def test_what_is_known_at_a_replica_is_no_work_for_it() -> None:
    router = router_of("ab")
    candidates = idle("ab", b=1)
    assert send(router, candidates, text(BLOCK * 9)).num_prompt_tokens == 1_000
    assert candidates[0].num_own_tokens == 1_100
    [again, _] = idle("ab", b=1)
    route = send(router, [again, candidates[1]], text(BLOCK * 9))
    assert route.num_prompt_tokens == 1_000 - 9 * BLOCK_TOKENS
    assert again.num_own_tokens == route.num_prompt_tokens + 100
    assert send(router, idle("ab", b=1), text(BLOCK * 9), num_prompt_tokens=1).num_prompt_tokens == 0


def test_a_hot_prefix_overflows_at_the_bound() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text(BLOCK * 40))
    others = 10_000
    # a's load L may be BOUND * (L + others) / 2 + SLACK_TOKENS at most.
    limit = int((BOUND * others / 2 + SLACK_TOKENS) / (1 - BOUND / 2))
    within = send(router, idle("ab", a=limit, b=others), text(BLOCK * 40))
    assert (within.replica_id, within.reason) == ("a", RoutingReason.PREFIX)
    beyond = send(router, idle("ab", a=limit + 1, b=others), text(BLOCK * 40))
    assert (beyond.replica_id, beyond.reason) == ("b", RoutingReason.OVERFLOW)


def test_a_short_common_prefix_is_not_worth_a_busy_replica_while_another_is_idle() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text(BLOCK))
    assert send(router, idle("ab", a=356), text(BLOCK + "?")).replica_id == "b"


def test_a_replica_with_the_prefix_but_without_room_is_passed_over() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text(BLOCK * 9))
    full = Candidate(replica_id="a", room=0)
    route = send(router, [full, *idle("b")], text(BLOCK * 9))
    assert (route.replica_id, route.reason) == ("b", RoutingReason.OVERFLOW)


def test_a_session_goes_where_it_was_last() -> None:
    router = router_of("abc")
    first = send(router, idle("abc"), text("hi"), "mine")
    routes = [send(router, idle("abc"), text(f"hi {n}"), "mine") for n in range(9)]
    assert {(route.replica_id, route.reason) for route in routes} == {(first.replica_id, RoutingReason.SESSION)}
    assert send(router, idle("abc"), text("hi"), "another").reason is RoutingReason.LOAD


def test_a_session_moves_when_its_replica_is_above_the_bound_and_stays_there() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text("hi"), "mine")
    moved = send(router, idle("ab", a=9_000), text("hi"), "mine")
    assert (moved.replica_id, moved.reason) == ("b", RoutingReason.OVERFLOW)
    assert {send(router, idle("ab"), text("hi"), "mine").replica_id for _ in range(9)} == {"b"}


def test_among_replicas_with_the_same_prefix_the_session_decides() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text(BLOCK * 9), "of a")
    send(router, idle("ab", a=9_000), text(BLOCK * 9), "of b")
    for name in "ab" * 3:
        route = send(router, idle("ab"), text(BLOCK * 9), f"of {name}")
        assert (route.replica_id, route.reason) == (name, RoutingReason.PREFIX)


def test_a_known_prefix_comes_before_the_session() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text(BLOCK * 9))
    send(router, idle("ab", a=1), text("hi"), "of b")
    assert send(router, idle("ab"), text(BLOCK * 9), "of b").replica_id == "a"


def test_a_lost_replica_gets_its_request_again_only_when_no_other_has_room() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text(BLOCK * 9), "mine")
    assert send(router, idle("ab", b=9_000), text(BLOCK * 9), "mine", avoid="a").replica_id == "b"
    full = Candidate(replica_id="b", room=0)
    assert send(router, [*idle("a"), full], text(BLOCK * 9), avoid="a").replica_id == "a"


def test_a_replica_that_went_away_is_forgotten_and_comes_back_empty() -> None:
    router = router_of("ab")
    send(router, idle("ab", b=1), text(BLOCK * 9), "mine")
    router.retain("b")
    assert (len(router._prefixes), len(router._sessions)) == (0, 0)
    router.retain("ab")
    assert send(router, idle("ab", a=1), text(BLOCK * 9), "mine").reason is RoutingReason.LOAD


def test_what_another_replica_knows_stays_when_one_goes_away() -> None:
    router = router_of("abc")
    send(router, idle("abc", b=1, c=1), text(BLOCK * 9))
    send(router, idle("abc", a=9_000, c=1), text(BLOCK * 9))
    router.retain("bc")
    assert send(router, idle("bc", b=1), text(BLOCK * 9)).replica_id == "b"


def test_others_requests_and_a_full_cache_count_as_load() -> None:
    busy = Candidate(replica_id="a", room=ROOM, num_foreign_tokens=500)
    assert send(router_of("ab"), [busy, *idle("b", b=400)], text("hi")).replica_id == "b"
    filled = Candidate(replica_id="a", room=ROOM, num_own_tokens=300, kv_cache_usage=0.5)
    assert send(router_of("ab"), [filled, *idle("b", b=500)], text("hi")).replica_id == "b"
    full = Candidate(replica_id="a", room=ROOM, num_own_tokens=1, kv_cache_usage=1.0)
    assert full.load == pytest.approx(10)


def test_equally_loaded_replicas_are_all_begun_with() -> None:
    router = router_of("abcdef")
    begun = Counter(send(router, idle("abcdef"), text("hi")).replica_id for _ in range(300))
    assert set(begun) == set("abcdef")
    assert max(begun.values()) < 100


@pytest.mark.parametrize(("max_tokens", "num_generated", "left"), [(None, 0, 256), (None, 999, 256), (100, 30, 70)])
def test_a_sequence_has_its_limit_or_the_usual_length_left(
    max_tokens: int | None, num_generated: int, left: int
) -> None:
    assert tokens_left(max_tokens, num_generated) == left


def test_a_limit_of_thousands_does_not_make_a_replica_look_busy() -> None:
    assert tokens_left(100_000, 0) == EXPECTED_TOKENS
    assert tokens_left(10, 12) == 0


# Whatever comes

NAMES = "abcde"
CALLS = st.lists(
    st.tuples(
        st.integers(0, 3),  # which beginning
        st.integers(0, 6),  # of how many blocks
        st.sampled_from((None, "s", "t")),
        st.sets(st.sampled_from(NAMES)),  # lost under it
        st.sets(st.sampled_from(NAMES), min_size=1),  # connected
    ),
    max_size=60,
)


@given(CALLS, st.integers(0, 20), st.sampled_from(RoutingPolicy))
def test_no_replica_gets_more_than_its_room_and_the_lost_one_only_if_it_must(
    calls: list[tuple[int, int, str | None, set[str], set[str]]], room: int, policy: RoutingPolicy
) -> None:
    router = Router(policy, random.Random(1))
    pool = {name: Candidate(replica_id=name, room=room) for name in NAMES}
    sent: Counter[str] = Counter()
    for beginning, num_blocks, session, lost, connected in calls:
        router.retain(connected)
        candidates = [pool[name] for name in NAMES if name in connected]
        with_room = {one.replica_id for one in candidates if one.room}
        if not with_room:
            continue
        route = send(router, candidates, text(str(beginning) * BLOCK_BYTES * num_blocks), session, avoid=sorted(lost))
        sent[route.replica_id] += 1
        assert route.replica_id in (with_room - lost or with_room)
        assert known_replicas(router) <= connected
    assert all(pool[name].room == room - sent[name] >= 0 for name in NAMES)


@given(CALLS)
def test_the_memory_is_bounded_and_knows_what_was_sent_last(
    calls: list[tuple[int, int, str | None, set[str], set[str]]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "MAX_PREFIXES", 7)
        patch.setattr(routing, "MAX_SESSIONS", 1)
        router = router_of(NAMES)
    for beginning, num_blocks, session, _, _ in calls:
        prompt = text(str(beginning) * BLOCK_BYTES * num_blocks)
        send(router, idle(NAMES), prompt, session)
        assert len(router._prefixes) <= 7
        assert len(router._sessions) <= 1
        known = [bool(router._prefixes.replicas(one)) for one in router.fingerprint(prompt, None).prefixes]
        assert all(known)


def test_of_what_was_long_not_used_the_end_is_forgotten_before_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_PREFIXES", 4)
    router = router_of("ab")
    send(router, idle("ab"), text("1" * BLOCK_BYTES * 3))
    send(router, idle("ab"), text("2" * BLOCK_BYTES * 2))
    prefixes = router.fingerprint(text("1" * BLOCK_BYTES * 3), None).prefixes
    assert [bool(router._prefixes.replicas(one)) for one in prefixes] == [True, True, False]


def test_what_is_used_again_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_PREFIXES", 2)
    router = router_of("ab")
    for beginning in "1213":
        send(router, idle("ab"), text(beginning * BLOCK_BYTES))
    known = [router._prefixes.replicas(router.fingerprint(text(one * BLOCK_BYTES), None).prefixes[0]) for one in "123"]
    assert [bool(replicas) for replicas in known] == [True, False, True]


@given(st.lists(st.integers(0, 3_000), min_size=2, max_size=40), st.integers(2, 8))
def test_requests_that_have_nothing_in_common_are_balanced_as_if_there_were_no_affinity(
    sizes: list[int], num_replicas: int
) -> None:
    names = NAMES + "fgh"
    chosen = []
    for policy in RoutingPolicy:
        router = router_of(names[:num_replicas], policy)
        candidates = idle(names[:num_replicas])
        prompts = [text(f"{number:064d}" * 64) for number in range(len(sizes))]
        chosen.append(
            [
                send(router, candidates, prompt, num_prompt_tokens=size).replica_id
                for prompt, size in zip(prompts, sizes, strict=True)
            ]
        )
    assert chosen[0] == chosen[1]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(2, 6))
def test_however_hot_a_prefix_no_replica_exceeds_the_bound_by_more_than_one_request(
    beginnings: list[int], num_replicas: int
) -> None:
    names = NAMES + "f"
    router = router_of(names[:num_replicas])
    candidates = idle(names[:num_replicas])
    for beginning in beginnings:
        send(router, candidates, text(str(beginning) * BLOCK_BYTES * 12))
    loads = [one.load for one in candidates]
    assert max(loads) <= BOUND * statistics.mean(loads) + SLACK_TOKENS + 1_100


# Several gateways

NUM_GATEWAYS = 8
NUM_REPLICAS = 8
ARRIVALS_PER_TICK = 32
LONGEST_TICKS = 16


def mean_excess(num_gateways: int) -> float:
    """By how much the fullest replica exceeds the mean, where gateways see each other's requests once per tick."""
    draws = random.Random(5)
    names = [str(number) for number in range(NUM_REPLICAS)]
    routers = [router_of(names, RoutingPolicy.LOAD, seed) for seed in range(num_gateways)]
    sent = [Counter[str]() for _ in routers]
    ends: dict[int, list[tuple[int, str]]] = {}
    excesses = []
    for tick in range(8 * LONGEST_TICKS):
        for gateway, name in ends.pop(tick, []):
            sent[gateway][name] -= 1
        told = sum(sent, Counter[str]())
        foreign = [{name: told[name] - mine[name] for name in names} for mine in sent]
        for _ in range(ARRIVALS_PER_TICK):
            gateway = draws.randrange(num_gateways)
            candidates = [
                Candidate(
                    replica_id=name,
                    room=ROOM,
                    num_own_tokens=sent[gateway][name] * EXPECTED_TOKENS,
                    num_foreign_tokens=foreign[gateway][name] * EXPECTED_TOKENS,
                )
                for name in names
            ]
            name = send(routers[gateway], candidates, text("hi")).replica_id
            sent[gateway][name] += 1
            ends.setdefault(tick + 1 + draws.randrange(LONGEST_TICKS), []).append((gateway, name))
        if tick >= LONGEST_TICKS:
            running = [sum(mine[name] for mine in sent) for name in names]
            excesses.append(max(running) / statistics.mean(running) - 1)
    return statistics.mean(excesses)


def test_gateways_that_know_little_of_each_other_do_not_run_to_the_same_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = mean_excess(NUM_GATEWAYS)
    monkeypatch.setattr(routing, "FEW_REPLICAS", NUM_REPLICAS)
    all_to_the_minimum = mean_excess(NUM_GATEWAYS)
    assert drawn < all_to_the_minimum / 2
    assert drawn < 0.15


def test_a_gateway_that_is_alone_leaves_nothing_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = mean_excess(1)
    monkeypatch.setattr(routing, "FEW_REPLICAS", NUM_REPLICAS)
    assert alone == mean_excess(1)
