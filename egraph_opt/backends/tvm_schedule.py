"""How a kernel's loops are arranged, and which arrangements are worth measuring. Nothing here imports tvm.

A schedule is text: ``""`` for the default, else ``vector=<axis>`` (``vector=none`` computes outputs one by one, with
vectors along reduced axes), ``transpose=<axis>`` (tiles are computed along the vector axis and stored along this one)
and
``serial``. Axes are those of the kernel's normal form: output axes split where an index divides them and merged where
possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod

from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.tvm_tree import Load, Loop, Lowering, Region, Stage
from egraph_opt.errors import UsageError
from egraph_opt.ir import expr as ex
from egraph_opt.ir import scalar
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.maps import linear
from egraph_opt.ir.terms import Apply, Reduce, Softmax, Source, Tensor, View, children, leaves

LANES = 16
PHASES = 8
# An output axis is split into two loops where an index divides it by at least this; smaller divisors become phases.
SMALLEST_SPLIT = 8
CANDIDATES = 3


@dataclass(frozen=True)
class Schedule:
    """``vector``: iterator whose values fill a vector (None: no output axis); ``transpose``: axis tiles are stored
    along.
    """

    vector: int | None
    transpose: int | None = None
    serial: bool = False

    @property
    def text(self) -> str:
        parts = [f"vector={'none' if self.vector is None else self.vector}"]
        parts += [f"transpose={self.transpose}"] if self.transpose is not None else []
        return " ".join([*parts, *(["serial"] if self.serial else [])])


@dataclass(frozen=True)
class NormalForm:
    """The whole output as one region, and its output axes (extent above 1) from outermost to innermost."""

    region: Region
    axes: tuple[int, ...]


@lru_cache(maxsize=4096)
def normal_form(body: Tensor) -> NormalForm:
    """Lower a body at symbolic output positions and choose the axes its loops will run over."""
    indices = tuple(ex.iterator(i) if n > 1 else Expr(0) for i, n in enumerate(body.extents))
    lowering = Lowering(body.extents)
    value = lowering.at(body, indices)
    region = Region(lowering.extents, value, linear(indices, body.extents))
    axes = [i for i, n in enumerate(body.extents) if n > 1]
    position = 0
    while position < len(axes):
        widths = [width for width in tree.digit_widths(region, axes[position]) if width >= SMALLEST_SPLIT]
        if widths and region.extents[axes[position]] > widths[0]:
            region, new = tree.split(region, axes[position], widths[0])
            axes.insert(position + 1, new)
        else:
            position += 1
    region, axes = tree.fused(region, axes)
    return NormalForm(region, tuple(axes))


def candidates(body: Tensor) -> tuple[Schedule, ...]:
    """A few arrangements, best guess first."""
    form = normal_form(body)
    inner = [axis for axis in form.axes if form.region.target.coefficient(axis) == 1]
    found: list[tuple[float, str, Schedule]] = []
    for axis in form.axes:
        load = _load_cost(form.region, axis)
        lanes = min(LANES, form.region.extents[axis])
        lanes_used = form.region.extents[axis] / -(-form.region.extents[axis] // lanes)
        if axis in inner:
            schedule, store = Schedule(axis), 1.0
        elif inner:
            schedule = Schedule(axis, inner[0])
            store = 6.0 if form.region.extents[inner[0]] >= 8 else 12.0
        else:
            continue
        found.append(((load + store) / lanes_used, schedule.text, schedule))
    if not form.axes or _has_loops(form.region):
        schedule = Schedule(None)
        found.append((_load_cost(form.region, None) + 1.0, schedule.text, schedule))
    found.sort(key=lambda entry: entry[:2])
    limit = 4 * found[0][0]
    return tuple(schedule for cost, _, schedule in found[:CANDIDATES] if cost <= limit) or (found[0][2],)


def schedules(body: Tensor) -> tuple[str, ...]:
    """Texts of the candidate schedules of a kernel body, best guess first; deterministic."""
    return tuple(schedule.text for schedule in candidates(body))


def parse(body: Tensor, text: str) -> Schedule:
    """The schedule a text names; raises UsageError when it does not fit the body."""
    if not text:
        return candidates(body)[0]
    form = normal_form(body)
    fields = dict(part.partition("=")[::2] for part in text.split())
    try:
        vector = None if fields.pop("vector") == "none" else int(text.split("vector=")[1].split()[0])
        transpose = int(fields.pop("transpose")) if "transpose" in fields else None
        serial = fields.pop("serial", None) is not None
    except (KeyError, ValueError) as error:
        raise UsageError(f"not a kernel schedule: {text!r}") from error
    if fields or any(axis is not None and axis not in form.axes for axis in (vector, transpose)):
        raise UsageError(f"kernel schedule {text!r} names something this kernel lacks; its axes are {list(form.axes)}")
    return Schedule(vector, transpose, serial)


def _has_loops(region: Region) -> bool:
    return any(isinstance(node, Stage | Loop) for node in tree.walk(region.value))


def _load_cost(region: Region, axis: int | None) -> float:
    """Cost of the loads for one vector along ``axis`` (None: for one element), counting reductions fully."""
    factor = 1
    if axis is not None:
        factor = tree.phase_factor(tree.expressions(region.value), axis, region.extents[axis], PHASES)
        if factor > 1:
            region = tree.narrow(region, axis, 0, region.extents[axis] // factor, factor, 0)
    total = 0.0
    for node in tree.walk(region.value):
        match node:
            case Load(_, offset):
                total += _stride_cost(offset, axis)
            case Stage(Softmax(), _):
                if axis is not None and any(axis in index.iterators for index in node.lead):
                    return inf
                total += 3.0
            case Stage(Reduce() as term, indices):
                lowering = Lowering(region.extents)
                inner = Region(lowering.extents, lowering.reduction(term, indices), Expr(0))
                inner = Region(lowering.extents, inner.value, Expr(0))
                total += _loop_cost(inner, axis)
            case Loop():
                total += _loop_cost(Region(region.extents, node, Expr(0)), axis)
    return total


def _loop_cost(region: Region, axis: int | None) -> float:
    loop = region.value
    if not isinstance(loop, Loop):
        return _load_cost(region, axis)
    count = prod(region.extents[i] for i in loop.iterators)
    inside = Region(region.extents, loop.value, Expr(0))
    if axis is not None:
        return count * _load_cost(inside, axis)
    best = min(_load_cost(inside, i) / min(LANES, max(1, region.extents[i])) for i in loop.iterators)
    return count * best + 6.0


def _stride_cost(offset: Expr, axis: int | None) -> float:
    if axis is None or axis not in offset.iterators:
        return 0.5
    if any(axis in quotient.dividend.iterators for quotient, _ in offset.quotients):
        return 2.0 * LANES
    stride = abs(offset.coefficient(axis))
    return 1.0 if stride == 1 else 1.5 * stride if stride <= 4 else 1.25 * LANES


# ---- static work estimate -------------------------------------------------------------------------------------------


def estimate(body: Tensor) -> tuple[float, float]:
    """Floating point operations (in additions) and bytes moved if every source is read at most once."""
    sizes = [prod(source.extents) for source in leaves(body) if isinstance(source, Source)]
    read = sum(min(size, _reads(body, size)) for size in sizes)
    return _operations(body), 4.0 * (read + prod(body.extents))


def _reads(body: Tensor, size: int) -> int:
    if isinstance(body, View):
        return min(size, prod(body.extents)) if prod(body.extents) < size else _reads(body.tensor, size)
    inner = [child for child in children(body) if isinstance(child, Tensor)]
    return min(size, sum(_reads(child, size) for child in inner)) if inner else size


def _operations(term: Tensor) -> float:
    size = prod(term.extents)
    match term:
        case Apply(function, arguments):
            return size * scalar.lookup(function).cost + sum(_bounded(a, size) for a in arguments)
        case Reduce(_, inner, _):
            return prod(inner.extents) + _operations(inner)
        case Softmax(inner, _):
            return size * 12.0 + _operations(inner)
        case View(inner, _):
            return _bounded(inner, size) + 0.25 * size
        case _:
            return 0.0


def _bounded(term: Tensor, readers: int) -> float:
    """Work for a subterm of which only ``readers`` elements are used; pointwise work is done per use."""
    whole = _operations(term)
    size = max(1, prod(term.extents))
    return whole * min(1.0, readers / size) if not isinstance(term, Apply) else whole * (readers / size)
