"""Who makes room: the least recently used, as few as will do, and nobody in vain."""

from __future__ import annotations

from workers.pool.eviction import Resident, choose_victims
from workers.pool.placement import Placement, Resources

GIB = 2**30


def resident(name: str, last_used_at: float, *reserved: tuple[str, Resources]) -> Resident:
    return Resident(
        model_id=f"m/{name}",
        replica_id=name,
        reserved=reserved or (("n1", {"memory": GIB}),),
        last_used_at=last_used_at,
    )


def needs(*bundles: Resources) -> Placement:
    return Placement(bundles, "PACK")


def names(victims: tuple[Resident, ...]) -> list[str]:
    return [one.replica_id for one in victims]


def test_the_least_recently_used_goes_first_and_no_more_than_are_needed() -> None:
    residents = [resident("b", 2), resident("a", 1), resident("c", 3)]
    assert names(choose_victims(needs({"memory": GIB}), {"n1": {}}, residents)) == ["a"]
    assert names(choose_victims(needs({"memory": 2 * GIB}), {"n1": {}}, residents)) == ["a", "b"]
    assert names(choose_victims(needs({"memory": 2 * GIB}), {"n1": {"memory": GIB}}, residents)) == ["a"]


def test_one_whose_going_does_not_help_stays_though_it_is_older() -> None:
    residents = [resident("small", 1, ("n1", {"memory": GIB / 4})), resident("large", 2)]
    assert names(choose_victims(needs({"memory": GIB}), {"n1": {}}, residents)) == ["large"]
    elsewhere = [resident("elsewhere", 1, ("n2", {"memory": GIB})), resident("here", 2, ("n1", {"memory": GIB}))]
    free: dict[str, Resources] = {"n1": {"gpu_kind": 1}, "n2": {}}
    assert names(choose_victims(needs({"memory": GIB, "gpu_kind": 1}), free, elsewhere)) == ["here"]


def test_nobody_goes_in_vain() -> None:
    assert choose_victims(needs({"memory": 9 * GIB}), {"n1": {}}, [resident("a", 1), resident("b", 2)]) == ()
    assert choose_victims(needs({"memory": GIB}), {"n1": {"memory": GIB}}, [resident("a", 1)]) == ()


def test_resources_of_a_node_that_died_free_nothing() -> None:
    assert choose_victims(needs({"memory": GIB}), {"n1": {}}, [resident("a", 1, ("dead", {"memory": GIB}))]) == ()


def test_all_bundles_of_a_group_need_room() -> None:
    residents = [resident("a", 1, ("n1", {"GPU": 1})), resident("b", 2, ("n2", {"GPU": 1}))]
    assert names(choose_victims(needs({"GPU": 1}, {"GPU": 1}), {"n1": {}, "n2": {}}, residents)) == ["a", "b"]
