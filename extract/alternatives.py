"""What a saturated e-graph offers: for every buffer, the steps that can fill it and the buffers these need.

Kernel bodies are found bottom-up: every tensor class keeps its few best bodies, each a choice of one e-node per class
down to the buffers it reads. A body is ranked by its own work and the estimated cost of those buffers.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import inf, prod

from egraph_opt.egraph import primitives
from egraph_opt.egraph.pattern import parse_extents
from egraph_opt.egraph.snapshot import ENode, Snapshot, fraction
from egraph_opt.extract.roofline import Device, call_seconds, kernel_seconds
from egraph_opt.ir import extensions, library, scalar
from egraph_opt.ir.expr import bounds
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.terms import Apply, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View

# Bodies kept per tensor class for each set of operators they read from: measuring may turn any ranking by static cost
# around, so no operator may crowd out another.
BODIES, KEPT = 2, 10
# Alternatives expected to cost more than this many times the best way to fill the same buffer are not offered.
HOPELESS = 4.0
# Kinds of bodies that are combined where a function has several arguments.
COMBINED = 3
# Buffers one kernel may read.
LEAVES = 6
# Operations one kernel may contain: a sum added to itself twenty times over is a million of them.
LARGEST_BODY = 512
# Work of one load and of one view's index arithmetic, in float additions.
LOAD, INDEX = 1.0, 0.1
# A reduction over more points than this is not worth much as a plain loop nest: no register blocking.
LONG_REDUCTION, LONG_REDUCTION_FACTOR = 128, 6.0


@dataclass(frozen=True, eq=False)
class Body:
    """One way to evaluate a tensor: an e-node with a body for each tensor it uses; ``leaves`` are buffer classes."""

    node: ENode
    parts: tuple[Body, ...]
    density: float
    leaves: frozenset[int]
    kind: frozenset[str] = frozenset()
    rank: float = 0.0
    size: int = 1


@dataclass(frozen=True, eq=False)
class Alternative:
    """One step that fills a buffer from the buffers ``needs``; ``text`` orders equal costs and never depends on ids."""

    step: Call | Compute | Reshape
    needs: tuple[int, ...]
    estimate: float

    @cached_property
    def text(self) -> str:
        return signature(self.step)


def buffer_name(owner: int) -> str:
    """The name under which a step refers to the buffer of a class."""
    return f"#{owner}"


def signature(step: Call | Compute | Reshape) -> str:
    """What a step does, whatever buffers it reads: the key of its measurements.

    It tells versions of what users added apart.
    """
    from egraph_opt.ir.program import kernel_signature
    from egraph_opt.ir.terms import show

    match step:
        case Call(operator, attributes, arguments, extents):
            shapes = ",".join(
                "x".join(map(str, a.extents)) + ("c" if isinstance(a, Source) and a.constant else "") for a in arguments
            )
            called = f"{operator}[{attributes}]({shapes})->{'x'.join(map(str, extents))}"
            if operator not in library.ADDED and not scalar.ADDED:
                return called
            from egraph_opt.extract.own_kernels import version

            return version(step, called)
        case Compute(tensor):
            body, sources = kernel_signature(tensor)
            shapes = ",".join("x".join(map(str, source.extents)) for source in sources)
            functions = extensions.identity(body)
            return f"kernel({shapes}) {show(body)}" + (f" with {functions}" if functions else "")
        case Reshape(buffer, extents):
            return f"reshape({'x'.join(map(str, buffer.extents))})->{'x'.join(map(str, extents))}"


@dataclass
class Problem:
    """The AND-OR graph of buffers. ``given`` buffers exist already, ``folded`` ones are computed ahead of time."""

    alternatives: dict[int, list[Alternative]]
    roots: dict[str, int]
    given: dict[int, Source]
    folded: dict[int, Tensor | Call | Reshape]
    extents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


class Extraction:
    """Builds the :class:`Problem` of one snapshot."""

    def __init__(self, snapshot: Snapshot, device: Device, unavailable: Collection[str] = ()) -> None:
        """``unavailable`` are library operators that the model's opset does not have."""
        self.snapshot = snapshot
        self.device = device
        self.unavailable = frozenset(unavailable)
        self.extents = snapshot.extents
        self.size = {owner: prod(extents) for owner, extents in self.extents.items()}
        self.bodies: dict[int, list[Body]] = {}
        # The best body of each class that only reads a buffer: where kernels would grow too large, they are cut there.
        self._reads: dict[int, Body] = {}
        self.cost: dict[int, float] = {}
        self._operators: dict[int, frozenset[str]] = {}
        self.constant = self._constants()
        self.parents: dict[int, list[tuple[int, ENode]]] = {}
        for owner, nodes in snapshot.classes.items():
            for node in nodes:
                for child in self._operands(node):
                    self.parents.setdefault(child, []).append((owner, node))

    def _operands(self, node: ENode) -> tuple[int, ...]:
        if node.constructor in ("Nil", "Cons"):
            return ()
        return self.snapshot.arguments(node.children[0]) if node.constructor == "Call" else node.children

    def _constants(self) -> set[int]:
        """Classes that depend on weights only."""
        found: set[int] = set()
        pending = [
            (o, n) for o, nodes in self.snapshot.classes.items() for n in nodes if n.constructor not in ("Nil", "Cons")
        ]
        changed = True
        while changed:
            changed = False
            rest = []
            for owner, node in pending:
                if owner in found:
                    continue
                operands = self._operands(node)
                alone = node.constructor == "Fill" or (node.constructor == "Source" and node.arguments[2] == "constant")
                if alone or (operands and all(child in found for child in operands)):
                    found.add(owner)
                    changed = True
                else:
                    rest.append((owner, node))
            pending = rest
        return found

    def run(self) -> None:
        """Relax bodies and buffer costs until nothing improves, cheapest class first."""
        queue: list[tuple[float, int]] = []
        waiting: set[int] = set()

        def push(owner: int, cost: float) -> None:
            heapq.heappush(queue, (cost, owner))
            waiting.add(owner)

        for owner, nodes in self.snapshot.classes.items():
            for node in nodes:
                if node.constructor == "Source" or (owner in self.constant and self.snapshot.sorts[owner] == "Buffer"):
                    self.cost[owner] = 0.0
                    push(owner, 0.0)
                elif node.constructor == "Fill":
                    self._offer(owner, self._body(owner, node, (), 0.0, frozenset()))
                    push(owner, 0.0)
        while queue:
            _, owner = heapq.heappop(queue)
            if owner not in waiting:  # an older entry of a class that was done with a better cost
                continue
            waiting.discard(owner)
            for parent, node in self.parents.get(owner, ()):
                improved = self._relax(parent, node)
                if improved is not None:
                    push(parent, improved)

    def _relax(self, owner: int, node: ENode) -> float | None:
        """Use one e-node to improve its class; the new rank of the class if it improved."""
        if self.snapshot.sorts[owner] == "Buffer":
            if owner in self.constant:
                return None
            cost = min(
                (
                    bound + sum(self.cost.get(need, inf) for need in needs)
                    for bound, needs, _ in self._options(owner, node)
                ),
                default=inf,
            )
            if cost < self.cost.get(owner, inf) * (1 - 1e-9):
                self.cost[owner] = cost
                return cost
            return None
        improved = False
        for body in self._combine(owner, node):
            improved |= self._offer(owner, body)
        return self.bodies[owner][0].rank if improved else None

    def _body(self, owner: int, node: ENode, parts: tuple[Body, ...], density: float, leaves: frozenset[int]) -> Body:
        kind = frozenset().union(*(self._producers(leaf) for leaf in leaves))
        rank = self._kernel_bound(owner, density, leaves) + sum(self.cost.get(leaf, inf) for leaf in sorted(leaves))
        return Body(node, parts, density, leaves, kind, rank, 1 + sum(part.size for part in parts))

    def _offer(self, owner: int, body: Body) -> bool:
        """Keep a body if it is among the best; a body over the same buffers must be cheaper than the one it
        replaces.
        """
        self.bodies.setdefault(owner, [])
        if body.node.constructor == "Read":
            known = self._reads.get(owner)
            if known is None or body.rank < known.rank * (1 - 1e-9):
                self._reads[owner] = body
                self._keep(owner, body)
                return True
        return self._keep(owner, body)

    def _keep(self, owner: int, body: Body) -> bool:
        kept = self.bodies[owner]
        for i, other in enumerate(kept):
            if other.leaves == body.leaves:
                if not self._better(body, other):
                    return False
                del kept[i]
                break
        alike = [b for b in kept if b.kind == body.kind]
        if len(alike) >= BODIES:
            if body.rank >= alike[-1].rank * (1 - 1e-9):
                return False
            kept.remove(alike[-1])
        kept.append(body)
        kept.sort(key=lambda b: (b.rank, b.density, len(b.leaves)))
        dropped = kept[KEPT:]
        del kept[KEPT:]
        return all(other is not body for other in dropped)

    def _better(self, body: Body, other: Body) -> bool:
        """Whether a body is cheaper than one over the same buffers."""
        return body.density < other.density * (1 - 1e-9)

    def _producers(self, owner: int) -> frozenset[str]:
        if owner not in self._operators:
            self._operators[owner] = frozenset()  # a class may be a reshape of itself
            found = set[str]()
            for node in self.snapshot.classes[owner]:
                if node.constructor == "Call":
                    found.add(str(node.arguments[0]))
                elif node.constructor == "Reshape":
                    found |= self._producers(node.children[0])
            self._operators[owner] = frozenset(found)
        return self._operators[owner]

    def _combine(self, owner: int, node: ENode) -> Iterable[Body]:
        if node.constructor == "Read":
            leaf = node.children[0]
            if leaf in self.cost:
                yield self._body(owner, node, (), LOAD, frozenset((leaf,)))
            return
        options = [self.bodies.get(child, []) for child in node.children]
        if len(options) > 1:  # the best of each kind is enough to combine
            options = [_diverse(found) for found in options]
        for combined in product(*options):
            parts = combined if owner in self.constant else self._cut(node.children, combined)
            if sum(part.size for part in parts) >= LARGEST_BODY:
                continue
            leaves = frozenset().union(*(part.leaves for part in parts))
            if len(leaves) <= LEAVES or owner in self.constant:  # what is folded ahead of time is no kernel
                yield self._body(owner, node, parts, self._density(node, parts), leaves)

    def _cut(self, children: Sequence[int], parts: tuple[Body, ...]) -> tuple[Body, ...]:
        """The parts with the largest read from memory, until one kernel can hold them."""
        found = list(parts)
        for i in sorted(range(len(parts)), key=lambda i: (-len(parts[i].leaves), -parts[i].size, i)):
            leaves = frozenset().union(*(part.leaves for part in found))
            if len(leaves) <= LEAVES and sum(part.size for part in found) < LARGEST_BODY:
                break
            found[i] = self._reads.get(children[i], found[i])
        return tuple(found)

    def _density(self, node: ENode, parts: tuple[Body, ...]) -> float:
        inner = sum(part.density for part in parts)
        match node.constructor:
            case "View":
                return inner + INDEX
            case "Sum" | "Reduce":
                count = int(node.arguments[-1])
                extents = self.extents[node.children[0]]
                taps = prod(extents[len(extents) - count :])
                if parts[0].node.constructor == "View":
                    taps = max(1, round(taps * _share(primitives.map_of(str(parts[0].node.arguments[1])))))
                slow = LONG_REDUCTION_FACTOR if taps > LONG_REDUCTION else 1.0
                return taps * (inner + 1.0) * slow
            case "Mul" | "Add":
                return inner + 1.0
            case "Apply1" | "Apply2":
                return inner + scalar.lookup(str(node.arguments[0])).cost
            case "Softmax":
                return 3 * inner + 12.0
        return inner

    def _buffer_cost(self, owner: int, alternative: Alternative) -> float:
        return alternative.estimate + sum(self.cost.get(need, inf) for need in alternative.needs)

    def _source(self, owner: int) -> Source:
        return Source(buffer_name(owner), self.extents[owner], owner in self.constant)

    def _options(self, owner: int, node: ENode) -> Iterable[tuple[float, tuple[int, ...], Body | None]]:
        """Estimate, buffers needed and kernel body of each way an e-node fills its buffer."""
        match node.constructor:
            case "Call":
                arguments = self.snapshot.arguments(node.children[0])
                shapes = tuple(self.extents[a] for a in arguments)
                operator, attributes = str(node.arguments[0]), str(node.arguments[1])
                if operator in self.unavailable and owner not in self.constant:
                    return
                bound = call_seconds(self.device, operator, attributes, shapes, parse_extents(str(node.arguments[3])))
                yield bound, tuple(dict.fromkeys(arguments)), None
            case "Reshape" if node.children[0] != owner:
                same = self.extents[node.children[0]] == self.extents[owner]
                yield 0.0 if same else self.device.reshape_seconds, (node.children[0],), None
            case "Compute":
                for body in self.bodies.get(node.children[0], []):
                    if owner in body.leaves or any(self._passes(leaf, owner) for leaf in body.leaves):
                        continue
                    bound = self._kernel_bound(owner, body.density, body.leaves)
                    yield bound, tuple(sorted(body.leaves)), body

    def _kernel_bound(self, owner: int, density: float, leaves: frozenset[int]) -> float:
        elements = self.size[owner]
        reach = min(sum(self.size[leaf] for leaf in leaves), int(elements * max(density, 1.0)))
        return kernel_seconds(self.device, elements, density, reach)

    def _steps(self, owner: int, node: ENode) -> Iterable[Alternative]:
        for bound, needs, body in self._options(owner, node):
            step: Call | Compute | Reshape
            if body is not None:
                step = Compute(self.term(body))
            elif node.constructor == "Reshape":
                step = Reshape(self._source(needs[0]), parse_extents(str(node.arguments[1])))
            else:
                sources = tuple(self._source(a) for a in self.snapshot.arguments(node.children[0]))
                step = Call(
                    str(node.arguments[0]), str(node.arguments[1]), sources, parse_extents(str(node.arguments[3]))
                )
            yield Alternative(step, needs, bound)

    def _passes(self, leaf: int, owner: int) -> bool:
        """A kernel reading a reshape of the buffer it fills would wait for itself."""
        return any(n.constructor == "Reshape" and n.children[0] == owner for n in self.snapshot.classes[leaf])

    def term(self, body: Body) -> Tensor:
        """The kernel body as a term over buffer names."""
        node = body.node
        parts = [self.term(part) for part in body.parts]
        a = node.arguments
        match node.constructor:
            case "Read":
                return Read(self._source(node.children[0]))
            case "View":
                return View(parts[0], primitives.map_of(str(a[1])))
            case "Sum":
                return Reduce("sum", parts[0], int(a[1]))
            case "Reduce":
                return Reduce(str(a[0]), parts[0], int(a[2]))
            case "Mul" | "Add":
                return Apply(node.constructor.lower(), tuple(parts))
            case "Softmax":
                return Softmax(parts[0], int(a[1]))
            case "Fill":
                return Fill(fraction(a[0]), parse_extents(str(a[1])))
        return Apply(str(a[0]), tuple(parts))

    def problem(self, outputs: Iterable[str]) -> Problem:
        """The alternatives of every buffer that some plan for ``outputs`` could need."""
        self.run()
        roots: dict[str, int] = {}
        for name in outputs:
            owner = self.snapshot.names[name]
            roots[name] = next(
                p for p, n in self.parents[owner] if n.constructor == "Compute" and n.children[0] == owner
            )
        result = Problem({}, roots, {}, {}, self.extents)
        constants: dict[int, list[Alternative]] = {}
        pending = sorted(roots.values())
        while pending:
            owner = pending.pop()
            if owner in result.alternatives or owner in result.given or owner in constants:
                continue
            nodes = self.snapshot.classes[owner]
            source = next((n for n in nodes if n.constructor == "Source"), None)
            if source is not None:
                kind = source.arguments[2] == "constant"
                result.given[owner] = Source(str(source.arguments[0]), self.extents[owner], kind)
                continue
            found = [a for node in nodes for a in self._steps(owner, node)]
            found = [a for a in found if all(need in self.cost for need in a.needs)]
            if owner in self.constant:
                constants[owner] = found
                pending += [need for a in found for need in a.needs]
                continue
            found.sort(key=lambda a: (self._buffer_cost(owner, a), a.text))
            limit = HOPELESS * self._buffer_cost(owner, found[0]) if found else 0.0
            found = [a for a in found if self._buffer_cost(owner, a) <= limit]
            result.alternatives[owner] = found
            pending += [need for a in found for need in a.needs]
        for owner, step in _well_founded(constants, result.given).items():
            result.folded[owner] = step.tensor if isinstance(step, Compute) else step
        return result


def _well_founded(
    constants: Mapping[int, Sequence[Alternative]], given: Mapping[int, Source]
) -> dict[int, Call | Compute | Reshape]:
    """The step that computes each buffer of weights in the fewest stages, the cheapest of them: none waits for itself,
    as two that are reshapes of each other would."""
    chosen: dict[int, Call | Compute | Reshape] = {}
    while True:
        ready = {
            owner: [a for a in found if all(need in given or need in chosen for need in a.needs)]
            for owner, found in constants.items()
            if owner not in chosen
        }
        if not any(ready.values()):
            return chosen
        for owner, found in ready.items():
            if found:
                chosen[owner] = min(found, key=lambda a: (a.estimate, a.text)).step


def _diverse(bodies: Sequence[Body]) -> list[Body]:
    """The best body of each of the few best kinds."""
    first: dict[frozenset[str], Body] = {}
    for body in bodies:
        if len(first) < COMBINED:
            first.setdefault(body.kind, body)
    return list(first.values())


def _share(index: IndexMap) -> float:
    """Share of the index points at which a view's remainder guards hold."""
    share = 1.0
    for guard in index.guards:
        low, high = bounds(guard, index.result)
        if low >= 0 and len(guard.terms) > 1:
            share /= high - low + 1
    return share
