"""How a CUDA kernel's threads share its work, and which arrangements are worth measuring. Nothing here imports tvm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from egraph_opt.backends import tvm_schedule
from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.tvm_schedule import NormalForm
from egraph_opt.backends.tvm_tree import Call, Condition, Fold, Guard, Load, Node, Stage
from egraph_opt.ir.terms import Reduce, Softmax, Tensor

Conditions = tuple[Condition, ...]

# Threads of a block, and of a warp, which runs in step.
THREADS, WARP = 256, 32
# Elements that one thread computes alone where there are many.
ELEMENTS = 4
# Neighbouring elements that one thread loads and stores at once.
LANES = 4
# Side of the square tiles through which a block turns rows into columns, and the tiles that fit into a block's memory.
TILE, TILES = 32, 4
# An axis shorter than this is not worth turning: its elements lie in few lines of the cache.
SHORTEST_SIDE = 8
# Blocks that keep a GPU busy; threads compute several elements only where at least so many blocks remain.
BUSY = 64
# Threads that share a row, and the rows up to which a single warp may have one for itself.
SHARES, WARP_ROW = (128, 512), 2048


@dataclass(frozen=True)
class CudaSchedule:
    """``kind`` says what the ``threads`` of a block do:

    - ``elements``: each computes ``each`` elements alone, which lie ``threads`` apart;
    - ``vectors``: each computes LANES neighbouring elements alone, with wide loads and stores;
    - ``tiles``: they read along ``axis`` and write along the innermost one, through tiles in shared memory;
    - ``rows``: ``share`` of them compute together what a row has in common, then its elements.
    """

    kind: str
    threads: int = THREADS
    each: int = 1
    axis: int = -1
    share: int = 0

    def __str__(self) -> str:
        given = [f"threads={self.threads}"]
        given += [f"each={self.each}"] if self.kind == "elements" else []
        given += [f"axis={self.axis}"] if self.kind == "tiles" else []
        given += [f"share={self.share}"] if self.kind == "rows" else []
        return " ".join([self.kind, *given])


def parse(text: str) -> CudaSchedule:
    """Inverse of ``str``."""
    kind, *rest = text.split()
    return CudaSchedule(kind, **{key: int(value) for key, value in (part.split("=") for part in rest)})


def schedules(body: Tensor) -> tuple[CudaSchedule, ...]:
    """The arrangements of a body worth measuring, best guess first."""
    form = tvm_schedule.normal_form(body)
    stages = [node for node in tree.walk(form.region.value) if isinstance(node, Stage)]
    total = prod(body.extents)
    several = total >= ELEMENTS * THREADS * BUSY
    alone = [CudaSchedule("elements"), *([CudaSchedule("elements", each=ELEMENTS)] if several else [])]
    if not stages:
        tiles = [CudaSchedule("tiles", axis=axis) for axis in turned_axes(form)]
        if several and wide_loads(form):
            alone = [CudaSchedule("vectors"), alone[0]]
        return (*tiles, *alone)
    length = max(prod(_own(stage)) for stage in stages)
    warps = [CudaSchedule("rows", share=WARP)] if length <= WARP_ROW else []
    blocks = [CudaSchedule("rows", threads=n, share=n) for n in SHARES]
    together = (*warps, *blocks)
    return together if any(isinstance(stage.term, Softmax) for stage in stages) else (*together, *alone)


def _own(stage: Stage) -> tuple[int, ...]:
    """Extents of what a stage combines."""
    if isinstance(stage.term, Reduce):
        return stage.term.tensor.extents[len(stage.term.extents) :]
    return stage.term.extents[len(stage.lead) :]


def reads(root: Node, conditions: Conditions = ()) -> Iterator[tuple[Node, Conditions, Load, Conditions]]:
    """The loads that are no part of a reduction, each with the guard around it, the conditions above that guard, and
    all conditions; as Evaluator comes across them.
    """
    match root:
        case Load():
            yield root, conditions, root, conditions
        case Guard(more, value):
            joined = tuple(dict.fromkeys((*conditions, *more)))
            if isinstance(value, Load):
                yield root, conditions, value, joined
            else:
                yield from reads(value, joined)
        case Call(_, items) | Fold(_, items):
            for item in items:
                yield from reads(item, conditions)


def _stride(load: Load, axis: int) -> int | None:
    """Elements between the neighbours that a load reads along an axis; None where it does not read in steps."""
    if any(axis in quotient.dividend.iterators for quotient, _ in load.offset.quotients):
        return None
    return load.offset.coefficient(axis)


def turned_axes(form: NormalForm, *, shortest: int = SHORTEST_SIDE) -> list[int]:
    """The axis along which inputs are read that lie across the output, if it and the innermost one are long enough."""
    if not form.axes or not _innermost_is_dense(form):
        return []
    inner = form.axes[-1]
    gains: dict[int, int] = {}
    for load in {id(load): load for _, _, load, _ in reads(form.region.value)}.values():
        for axis in form.axes[:-1]:
            if turns(load, inner, axis):
                gains[axis] = gains.get(axis, 0) + 1
    long = [axis for axis in gains if min(form.region.extents[axis], form.region.extents[inner]) >= shortest]
    return sorted(long, key=lambda axis: (-gains[axis], axis))[:1]


def turns(load: Load, inner: int, axis: int) -> bool:
    """Whether a load reads neighbours along ``axis``, and others than neighbours along ``inner``."""
    across = _stride(load, inner)
    return _stride(load, axis) == 1 and (across is None or abs(across) > 1)


def wide_loads(form: NormalForm) -> list[tuple[Node, Conditions, Load, Conditions]]:
    """The reads that LANES neighbouring elements of the output have side by side, at positions that LANES divides."""
    if not form.axes or not _innermost_is_dense(form):
        return []
    inner = form.axes[-1]
    if form.region.extents[inner] % LANES:
        return []
    found: dict[tuple[int, Conditions], tuple[Node, Conditions, Load, Conditions]] = {}
    for read in reads(form.region.value):
        _, conditions, load, joined = read
        if _stride(load, inner) != 1 or any(inner in condition.expr.iterators for condition in joined):
            continue
        others = [n for atom, n in load.offset.terms if atom != inner]
        if not any(n % LANES for n in (load.offset.constant, *others)):
            found[id(read[0]), conditions] = read
    return list(found.values())


def _innermost_is_dense(form: NormalForm) -> bool:
    return form.region.target.coefficient(form.axes[-1]) == 1
