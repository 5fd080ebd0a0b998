"""Extraction under a cost model of the user's own: a function from what a step is and does to what it costs.

The model ranks everything, the bodies of kernels and what is worth offering as much as the final choice; between plans
of equal cost the one that should be fastest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod

from egraph_opt.egraph import primitives
from egraph_opt.egraph.pattern import parse_extents
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.extract.alternatives import Alternative, Body, Extraction, Problem, _share
from egraph_opt.extract.choose import Choice, Cost, choose, gathered
from egraph_opt.extract.roofline import STEP_SECONDS, Device, kernel_seconds
from egraph_opt.extract.step_info import (
    KERNEL,
    SOFTMAX_OPERATIONS,
    CostModel,
    StepInfo,
    info_of,
    priced,
    static_seconds,
)
from egraph_opt.ir import library, scalar
from egraph_opt.ir.terms import Call, Compute, Reshape, Source

# Among bodies over the same buffers the one of fewest operations is kept, then of fewest loads and views.
_SMALL = 1e-6
# How much of a plan's cost the static seconds may weigh when they decide between equals.
_TIE = 1e-7
_DEVICE = Device()

Written = Callable[[Call | Compute | Reshape], Sequence[Call | Reshape] | None]


@dataclass(frozen=True, eq=False)
class PricedAlternative(Alternative):
    """An alternative whose ``estimate`` is what the cost model says; ``static`` are the seconds it should take."""

    info: StepInfo
    static: float


@dataclass(frozen=True, eq=False)
class _Counted(Body):
    """A body with its operations and loads per element, and its price."""

    operations: float = 0.0
    loads: float = 0.0
    views: float = 0.0
    price: float = inf


class PricedExtraction(Extraction):
    """The alternatives of one snapshot as a cost model sees them.

    With ``written``, which tells the library calls that express a kernel, kernels cost what these do.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        model: CostModel,
        written: Written | None = None,
        unavailable: Collection[str] = (),
    ) -> None:
        super().__init__(snapshot, _DEVICE, unavailable)
        self.model = model
        self.written = written
        self._calls: dict[ENode, tuple[StepInfo, float]] = {}
        self._rough: dict[tuple[int, ENode], float] = {}

    def priced(self, info: StepInfo) -> float:
        """What the cost model says of a step, or of the steps it is written as."""
        if self.written is None or not info.is_kernel:
            return priced(self.model, info)
        steps = self.written(info.step())
        return inf if steps is None else sum(priced(self.model, info_of(step)) for step in steps)

    def _better(self, body: Body, other: Body) -> bool:
        assert isinstance(body, _Counted)
        assert isinstance(other, _Counted)
        if body.price == other.price:
            return super()._better(body, other)
        return body.price < other.price * (1 - 1e-9)

    def _may_improve(self, owner: int, size: int, density: float, leaves: frozenset[int]) -> bool:
        return True  # told by the price, which _body finds

    def _density(self, node: ENode, parts: tuple[Body, ...]) -> float:
        return 0.0  # counted in _body

    def _body(self, owner: int, node: ENode, parts: tuple[Body, ...], density: float, leaves: frozenset[int]) -> Body:
        operations, loads, views = self._count(node, [part for part in parts if isinstance(part, _Counted)])
        kind = frozenset().union(*(self._producers(leaf) for leaf in leaves))
        draft = _Counted(
            node,
            parts,
            operations + _SMALL * (loads + views),
            leaves,
            kind,
            size=1 + sum(part.size for part in parts),
            operations=operations,
            loads=loads,
            views=views,
        )
        price = priced(self.model, self._kernel(owner, draft)) if self.written is None else self._roughly(owner, draft)
        # Of bodies that cost the same the one that computes less itself: what it reads may serve others, too.
        rank = price * (1 + _SMALL) + sum(self.cost.get(leaf, inf) for leaf in sorted(leaves))
        return replace(draft, rank=rank, price=price)

    def _roughly(self, owner: int, body: _Counted) -> float:
        """What a body should cost written with library calls, one for each of its operations."""
        key = (owner, body.node)
        if key not in self._rough:
            call = self._as_call(owner, body.node)
            self._rough[key] = 0.0 if call is None else priced(self.model, info_of(call))
        return self._rough[key] + sum(part.price for part in body.parts if isinstance(part, _Counted))

    def _as_call(self, owner: int, node: ENode) -> Call | None:
        """The library call for one e-node; None where it takes none."""
        a, result = node.arguments, self.extents[owner]
        arguments = tuple(Source("", self.extents[child]) for child in node.children)
        match node.constructor:
            case "View":
                index = primitives.map_of(str(a[1]))
                if index.permutation is not None and not index.is_reshape:
                    return Call("Transpose", "", arguments, result)
                # Broadcasting is part of what reads it.
                free = all(e.as_iterator() is not None or e.is_constant for e in index.indices) and index.is_total
                return None if free or index.is_reshape else Call("Slice", "", arguments, result)
            case "Sum":
                return Call("ReduceSum", "", arguments, result)
            case "Reduce":
                operation = "max" if a[0] == "pool" else str(a[0])
                return Call(f"Reduce{operation.capitalize()}", "", arguments, result)
            case "Mul" | "Add":
                function = node.constructor.lower()
            case "Apply1" | "Apply2":
                function = str(a[0])
            case "Softmax":
                return Call("Softmax", "", arguments, result)
            case _:
                return None
        text = library.format_attributes(function=function)
        return Call(scalar.lookup(function).function.onnx or function, text, arguments, result)

    def _count(self, node: ENode, parts: Sequence[_Counted]) -> tuple[float, float, float]:
        """Operations, loads and views per element."""
        operations = sum(part.operations for part in parts)
        loads = sum(part.loads for part in parts)
        views = sum(part.views for part in parts)
        match node.constructor:
            case "Read":
                return 0.0, 1.0, 0.0
            case "View":
                return operations, loads, views + 1.0
            case "Sum" | "Reduce":
                extents = self.extents[node.children[0]]
                taps = prod(extents[len(extents) - int(node.arguments[-1]) :])
                inner = parts[0].node
                if inner.constructor == "View":  # a kernel leaves out what its guards make zero
                    taps = max(1, round(taps * _share(primitives.map_of(str(inner.arguments[1])))))
                return taps * (operations + 1.0), taps * loads, views
            case "Mul" | "Add" | "Apply1" | "Apply2":
                return operations + 1.0, loads, views
            case "Softmax":
                return operations + SOFTMAX_OPERATIONS, loads, views
        return operations, loads, views

    def _kernel(self, owner: int, body: _Counted) -> StepInfo:
        needs = sorted(body.leaves)
        elements = self.size[owner]
        available = sum(self.size[leaf] for leaf in needs)
        read = min(available, round(elements * body.loads))
        density = body.operations + body.loads + 0.1 * body.views
        return StepInfo(
            KERNEL,
            {},
            tuple(self.extents[leaf] for leaf in needs),
            tuple(leaf in self.constant for leaf in needs),
            self.extents[owner],
            round(elements * body.operations),
            read,
            lambda: Compute(self.term(body)),
            lambda: STEP_SECONDS + kernel_seconds(self.device, elements, density, available),
        )

    def _call(self, node: ENode) -> tuple[StepInfo, float]:
        if node not in self._calls:
            sources = tuple(self._source(a) for a in self.snapshot.arguments(node.children[0]))
            operator, attributes = str(node.arguments[0]), str(node.arguments[1])
            info = info_of(Call(operator, attributes, sources, parse_extents(str(node.arguments[3]))))
            self._calls[node] = (info, self.priced(info))
        return self._calls[node]

    def _reshape(self, owner: int, node: ENode) -> StepInfo:
        return info_of(Reshape(self._source(node.children[0]), self.extents[owner]))

    def _options(self, owner: int, node: ENode) -> Iterable[tuple[float, tuple[int, ...], Body | None]]:
        match node.constructor:
            case "Call" if node.arguments[0] not in self.unavailable or owner in self.constant:
                needs = tuple(dict.fromkeys(self.snapshot.arguments(node.children[0])))
                yield self._call(node)[1], needs, None
            case "Reshape" if node.children[0] != owner:
                same = self.extents[node.children[0]] == self.extents[owner]
                yield 0.0 if same else self.priced(self._reshape(owner, node)), (node.children[0],), None
            case "Compute":
                for body in self.bodies.get(node.children[0], []):
                    assert isinstance(body, _Counted)
                    if owner not in body.leaves and not any(self._passes(leaf, owner) for leaf in body.leaves):
                        yield body.price, tuple(sorted(body.leaves)), body

    def _steps(self, owner: int, node: ENode) -> Iterable[Alternative]:
        for price, needs, body in self._options(owner, node):
            if isinstance(body, _Counted):
                info = self._kernel(owner, body)
                static = info.seconds
                if self.written is not None:
                    price, steps = self.priced(info), self.written(info.step())
                    static = inf if steps is None else sum(map(static_seconds, steps))
            elif node.constructor == "Reshape":
                info, static = self._reshape(owner, node), self.device.reshape_seconds
            else:
                info, _ = self._call(node)
                step = info.step()
                static = inf if isinstance(step, Compute) else static_seconds(step)
            yield PricedAlternative(info.step(), needs, price, info, static)


def seconds(alternative: Alternative) -> float:
    """What decides between alternatives of equal cost."""
    return alternative.static if isinstance(alternative, PricedAlternative) else alternative.estimate


def seconds_alone(alternative: PricedAlternative) -> float:
    """The estimate of an alternative where time counts: without what every step costs beside its own time."""
    whole = alternative.static
    return whole if isinstance(alternative.step, Reshape) else max(whole - STEP_SECONDS, 0.0)


def cheapest(problem: Problem, cost: Cost) -> Choice | None:
    """The cheapest choice; between choices of equal cost the one that should be faster. None without a finite one.

    Exchanges get stuck where several are needed at once. So the search is repeated with a small addition to the cost
    that leads through choices of equal cost to faster ones, and from a start of many small steps: the best tree pays
    for a shared buffer as often as it is read and therefore computes too much anew.
    """
    first = choose(problem, cost)
    if first is None:
        return None
    total = sum(seconds(alternative) for _, alternative in first.steps)
    each = _TIE * first.cost / total if first.cost > 0 and total > 0 else 1.0
    found = [first]
    for start in (None, lambda alternative: cost(alternative) ** 2):
        other = choose(problem, lambda alternative: cost(alternative) + each * seconds(alternative), start)
        if other is not None:
            found.append(replace(other, cost=sum(cost(alternative) for _, alternative in other.steps)))
    found += [gathered(problem, choice, cost) for choice in found]
    least = min(choice.cost for choice in found) * (1 + 1e-12)
    return min((c for c in found if c.cost <= least), key=lambda c: sum(seconds(a) for _, a in c.steps))
