"""Buffers of one arena: no two that are alive at once overlap, and the arena is close to the least there can be."""

import random
from collections.abc import Collection, Sequence
from itertools import permutations

import pytest

from egraph_opt.ir.memory import Fill, Lifetime, lifetimes, live_bytes, ordered, plan_buffers


def peak(fills: list[Fill], order: Sequence[int], kept: Collection[str] = ()) -> int:
    """Bytes alive at once when steps run in an order."""
    return int(live_bytes(lifetimes([fills[i] for i in order], kept), len(order)).max())


def test_lifetimes_end_with_the_last_reader_and_aliases_are_one_buffer() -> None:
    fills = [
        Fill("a", 100, ("input",)),
        Fill("view", 100, ("a",), alias="a"),
        Fill("b", 10, ("a",)),
        Fill("c", 20, ("view", "weight")),
        Fill("d", 30, ("b",)),
        Fill("again", 30, ("input",), alias="input"),
    ]
    assert lifetimes(fills, ("c",)) == [
        Lifetime("a", 100, 0, 3),
        Lifetime("b", 10, 2, 4),
        Lifetime("c", 20, 3, 5),
        Lifetime("d", 30, 4, 4),
    ]


def drawn(seed: int) -> list[Lifetime]:
    draw = random.Random(seed)
    found = []
    for number in range(draw.randrange(1, 30)):
        first = draw.randrange(20)
        found.append(Lifetime(str(number), draw.choice([0, 1, 7, 64, 300, 1000]), first, first + draw.randrange(8)))
    return found


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("alignment", [1, 64])
def test_no_two_buffers_that_are_alive_at_once_overlap(seed: int, alignment: int) -> None:
    found = drawn(seed)
    plan = plan_buffers(found, alignment=alignment)
    for one in found:
        assert plan.offsets[one.buffer] % alignment == 0
        assert 0 <= plan.offsets[one.buffer] <= plan.peak - one.size
        for other in found:
            if one is not other and one.size and other.size and one.first <= other.last and other.first <= one.last:
                a, b = plan.offsets[one.buffer], plan.offsets[other.buffer]
                assert a + one.size <= b or b + other.size <= a, f"{one} at {a} and {other} at {b}, seed {seed}"
    assert plan.live == max(sum(item.size for item in found if item.first <= step <= item.last) for step in range(30))
    assert plan.live <= plan.peak <= sum(-(-item.size // alignment) * alignment for item in found)


def test_the_arena_is_close_to_what_is_alive() -> None:
    plans = [plan_buffers(drawn(seed), alignment=1) for seed in range(60)]
    assert sum(plan.peak for plan in plans) <= 1.1 * sum(plan.live for plan in plans)


def test_nothing_needs_nothing() -> None:
    assert plan_buffers([]).peak == 0


@pytest.mark.parametrize("seed", range(40))
def test_another_order_needs_less_memory_and_reads_what_is_there(seed: int) -> None:
    draw = random.Random(seed)
    fills: list[Fill] = []
    for number in range(7):
        reads = tuple(sorted({f.buffer for f in draw.sample(fills, min(len(fills), draw.randrange(3)))}))
        alias = reads[0] if reads and draw.random() < 0.2 else ""
        size = next(f.size for f in fills if f.buffer == alias) if alias else draw.choice([1, 10, 100])
        fills.append(Fill(str(number), size, reads, alias))
    kept = {fills[-1].buffer}

    order = ordered(fills, kept)
    assert sorted(order) == list(range(len(fills)))
    position = {fills[i].buffer: place for place, i in enumerate(order)}
    for fill in fills:
        assert all(position[name] < position[fill.buffer] for name in fill.reads)
    assert peak(fills, order, kept) <= peak(fills, range(len(fills)), kept)


def test_a_wide_graph_is_walked_branch_by_branch() -> None:
    # Four branches written breadth first: large buffers that are each made small again.
    fills = [Fill(f"large{i}", 1000, ("x",)) for i in range(4)]
    fills += [Fill(f"small{i}", 1, (f"large{i}",)) for i in range(4)]
    fills.append(Fill("y", 1, tuple(f"small{i}" for i in range(4))))
    order = ordered(fills, {"y"})

    assert peak(fills, range(9), {"y"}) == 4001
    assert peak(fills, order, {"y"}) == 1004


def test_a_small_graph_is_ordered_in_the_best_way() -> None:
    fills = [Fill(f"large{i}", 100 + i, ("x",)) for i in range(3)]
    fills += [Fill(f"small{i}", i, (f"large{i}",)) for i in (0, 2)]
    reads = [(i, j) for j, f in enumerate(fills) for i, g in enumerate(fills) if g.buffer in f.reads]
    orders = [order for order in permutations(range(5)) if all(order.index(i) < order.index(j) for i, j in reads)]
    assert peak(fills, ordered(fills, ())) == min(peak(fills, order) for order in orders) < peak(fills, range(5))
