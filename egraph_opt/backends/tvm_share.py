"""How a kernel's index points are divided: phases of an axis, and chunks so that threads get shares of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.tvm_schedule import LANES, PHASES, Schedule
from egraph_opt.backends.tvm_tree import Region, Stage
from egraph_opt.ir import expr as ex
from egraph_opt.ir.terms import Softmax


def phases_of(region: Region, axis: int) -> int:
    """How many phases of an axis are unrolled."""
    return tree.phase_factor(tree.expressions(region.value), axis, region.extents[axis], PHASES)


def steps(region: Region, axis: int) -> int:
    """Iterations of an axis once its phases are unrolled."""
    return -(-region.extents[axis] // phases_of(region, axis))


def divided(region: Region, outer: Sequence[int], schedule: Schedule, tasks: int) -> list[tuple[Region, list[int]]]:
    """The region, or when its outer axes are too few for the tasks, chunks of its largest inner axis and the
    remainder.
    """
    stages = any(isinstance(node, Stage) and isinstance(node.term, Softmax) for node in tree.walk(region.value))
    inner = [axis for axis in (schedule.vector, schedule.transpose) if axis is not None]
    available = prod(steps(region, axis) for axis in outer)
    if tasks == 1 or available >= 2 * tasks or stages or not inner:
        return [(region, list(outer))]
    axis = max(inner, key=lambda i: region.extents[i])
    extent = region.extents[axis]
    step = phases_of(region, axis)
    grain = LANES * step
    chunk = max(grain, extent * available // (2 * tasks) // grain * grain)
    count = extent // chunk
    if count < 2:
        return [(region, list(outer))]
    new = len(region.extents)
    extents = [*region.extents, count]
    extents[axis] = chunk
    moved = ex.iterator(new) * chunk + ex.iterator(axis)
    found = [(tree.substitute(region, {axis: moved}, tuple(extents)), [new, *outer])]
    if extent % chunk:
        rest = tree.narrow(region, axis, count * chunk, extent)
        found.append((replace(rest, extents=(*rest.extents, 1)), [new, *outer]))
    return found
