"""The arrangements of a kernel's loops that tuning looks through: schedules with sampled decisions.

MetaSchedule's rules for processors know products and convolutions; for a kernel without reductions they hold a single
point. So there are spaces of our own beside them. Pointwise: which axis fills vectors, tiles of it and of the axis that
is contiguous in the output, how many rows at once, how far loops are unrolled, whether they are cut where a condition
changes. By rows: softmaxes and long reductions are computed where their row is needed, in vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule as ms

from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.tvm_blocks import OUTPUT, output_regions
from egraph_opt.backends.tvm_tree import Guard, Load, Region, Stage
from egraph_opt.ir.terms import Tensor

# Everything TVM is Any here.
Generator = Any
Scheduled = Any
# Largest tiles along the axis of vectors and across it, and rows computed at once.
LONGEST_VECTOR, LONGEST_TILE, MOST_ROWS = 64, 16, 8
# Vector lengths where none divides an axis; the least reduction that is worth parts, and the fewest parts.
LANES, SHORTEST_REDUCTION, FEWEST_PARTS = (8, 16, 32), 32, 4
UNROLLED = (0, 16, 64, 512)
# What TVM puts behind the name of a reduction for the block of its parts.
_PARTS = "_rf"


def generators_for(body: Tensor) -> tuple[Generator, ...]:
    """The space generators of a kernel body, each worth a share of the trials."""
    (region, *_), axes = output_regions(body)
    stages = [node for node in tree.walk(region.value) if isinstance(node, Stage)]
    if not stages:
        return (own(lambda plain: _pointwise(plain, region, axes)),)
    leads = {i for stage in stages for index in stage.lead for i in index.iterators}
    rows = own(lambda plain: _by_rows(plain, axes, [axis for axis in axes if axis in leads]))
    return (rows, ms.space_generator.PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"))


def own(space: Callable[[Scheduled], Any]) -> Generator:
    """The generator of a function that arranges a schedule, or returns several arranged ones."""
    return ms.space_generator.ScheduleFn(
        space, sch_rules=[], postprocs=[], mutator_probs={ms.mutator.MutateTileSize(): 1.0}
    )


def _pointwise(plain: Scheduled, region: Region, axes: Sequence[int]) -> list[Scheduled]:
    guarded = any(isinstance(node, Guard) for node in tree.walk(region.value))
    if not axes:
        return [plain]
    found = []
    for vector in _vector_axes(region, axes):
        for explicit in (True, False):
            for cut in (True, False) if guarded else (False,):
                schedule = plain.copy()
                _tiled(schedule, axes, vector, explicit=explicit, cut=cut)
                found.append(schedule)
    return found


def _vector_axes(region: Region, axes: Sequence[int]) -> list[int]:
    """Axes along which neighbours lie side by side, in the output or in what is read."""
    loads = [node.offset for node in tree.walk(region.value) if isinstance(node, Load)]
    return [axes[-1], *(a for a in axes[:-1] if any(abs(offset.coefficient(a)) == 1 for offset in loads))]


def _tiled(schedule: Scheduled, axes: Sequence[int], vector: int, *, explicit: bool, cut: bool) -> None:
    """Outer loops in parallel; inside some rows at once, a tile of the last axis, and vectors."""
    limits = dict.fromkeys([axis for axis in axes if axis not in (vector, axes[-1])][-1:], MOST_ROWS)
    limits |= {axes[-1]: LONGEST_TILE, vector: LONGEST_VECTOR}
    outer, inner = [], {}
    for axis, loop in zip(axes, schedule.get_loops(schedule.get_sblock(OUTPUT)), strict=True):
        if axis in limits:
            loop, inner[axis] = _split(schedule, loop, limits[axis], vector=explicit and axis == vector)
        outer.append(loop)
    last = inner.pop(vector)
    schedule.reorder(*outer, *inner.values(), last)
    if explicit:
        schedule.vectorize(last)
    if cut:
        schedule.annotate(last, "pragma_loop_partition_hint", 1)
    _shared_out(schedule, outer)


def _split(schedule: Scheduled, loop: Any, limit: int, *, vector: bool) -> list[Any]:
    """A loop as two, of which the inner one divides it; the elements of a vector are at least two."""
    if not vector:
        return list(schedule.split(loop, schedule.sample_perfect_tile(loop, n=2, max_innermost_factor=limit)))
    extent = int(schedule.get(loop).extent)
    lengths = [length for length in range(2, limit + 1) if extent % length == 0] or [extent]
    return list(schedule.split(loop, [None, _one_of(schedule, lengths)]))


def _shared_out(schedule: Scheduled, outer: Sequence[Any]) -> Any:
    """Outer loops as one parallel loop; returns it."""
    whole = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
    schedule.parallel(whole)
    schedule.annotate(whole, "pragma_auto_unroll_max_step", _one_of(schedule, UNROLLED))
    schedule.annotate(whole, "pragma_unroll_explicit", 1)
    return whole


def _by_rows(plain: Scheduled, axes: Sequence[int], leading: Sequence[int]) -> list[Scheduled]:
    if not leading:
        return [plain]
    found = []
    for explicit in (True, False):
        schedule = plain.copy()
        loops = dict(zip(axes, schedule.get_loops(schedule.get_sblock(OUTPUT)), strict=True))
        schedule.reorder(*(loops[a] for a in leading), *(loops[a] for a in axes if a not in leading))
        row = _shared_out(schedule, [loops[axis] for axis in leading])
        for name in _stages(schedule.mod):
            _attempt(schedule, partial(_in_parts, name=name))
        blocks = _stages(schedule.mod)
        for name in reversed(blocks):
            _attempt(schedule, partial(_computed_at, name=name, loop=row))
        for name in (*blocks, OUTPUT):
            _in_vectors(schedule, name, explicit=explicit)
        found.append(schedule)
    return found


def _in_parts(schedule: Scheduled, name: str) -> None:
    """A long reduction as several side by side, in a block of their own."""
    block = schedule.get_sblock(name)
    if not _is_reduction(schedule.get(block)):
        return
    last = schedule.get_loops(block)[-1]
    extent = int(schedule.get(last).extent)
    # Only parts that divide it: where blocks are moved TVM forgets the condition of the last part.
    parts = [count for count in range(FEWEST_PARTS, LONGEST_VECTOR + 1) if extent % count == 0]
    if extent >= SHORTEST_REDUCTION and parts:
        rank = len(schedule.get(block).writes[0].region)
        schedule.rfactor(schedule.split(last, [None, _one_of(schedule, parts)])[1], rank)


def _is_reduction(block: Any) -> bool:
    return any(iterator.iter_type == tirx.IterVar.CommReduce for iterator in block.iter_vars)


def _computed_at(schedule: Scheduled, name: str, loop: Any) -> None:
    schedule.compute_at(schedule.get_sblock(name), loop, preserve_unit_loops=True)


def _in_vectors(schedule: Scheduled, name: str, *, explicit: bool) -> None:
    """The innermost loop of a block in vectors; the parts of a reduction are the elements of one."""
    block = schedule.get_sblock(name)
    loops = schedule.get_loops(block)
    if _is_reduction(schedule.get(block)):
        if name.endswith(_PARTS):
            parts, *_, last = loops[-len(schedule.get(block).iter_vars) :]
            schedule.reorder(last, parts)
            schedule.vectorize(parts)
    elif explicit and len(loops) > 1:
        last = loops[-1]
        extent = int(schedule.get(last).extent)
        if any(extent % lanes == 0 for lanes in LANES):
            schedule.vectorize(_split(schedule, last, LONGEST_VECTOR, vector=True)[1])
        elif extent > min(LANES):
            # The last vector is cut off, so that the others have no condition.
            outer, inner = schedule.split(last, [None, _one_of(schedule, LANES)])
            schedule.annotate(outer, "pragma_loop_partition_hint", 1)
            schedule.vectorize(inner)


def _one_of(schedule: Scheduled, values: Sequence[int]) -> Any:
    return schedule.sample_categorical(list(values), [1.0 / len(values)] * len(values))


def _attempt(schedule: Scheduled, change: Callable[[Scheduled], object]) -> None:
    """A change that TVM may refuse; then nothing of it is left."""
    trial = schedule.copy()
    try:
        change(trial)
    except Exception:  # TVM raises errors of several kinds
        return
    change(schedule)


def _stages(module: Any) -> list[str]:
    """Names of the blocks before the last one, in order."""
    found: list[str] = []
    tvm_ffi.structural_walk(module, (s_tir.SBlock, lambda block: found.append(str(block.name_hint))))
    return [name for name in found if name not in (OUTPUT, "root")]
