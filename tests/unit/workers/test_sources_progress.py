"""Progress lines are for people: few, and the last one is never missing."""

from __future__ import annotations

from workers.sources.progress import ByteProgress


def test_many_steps_give_few_lines_and_the_last_one() -> None:
    lines: list[str] = []
    counter = ByteProgress(lines.append, "fetching weights", 98_362_432)
    for num_bytes in range(0, 98_362_432, 4096):
        counter.reached(num_bytes)
    counter.reached(98_362_432)
    assert lines[0] == "fetching weights: 0 of 98 MB"
    assert lines[-1] == "fetching weights: 98 of 98 MB"
    assert len(lines) < 100
