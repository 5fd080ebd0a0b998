"""What a saturated e-graph offers: for every buffer, the steps that can fill it and the buffers these need.

Kernel bodies are found bottom-up: every tensor class keeps its few best bodies, each a choice of one e-node per class
down to the buffers it reads. A body is ranked by its own work and the estimated cost of those buffers.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from itertools import product, repeat
from math import inf, prod

from egraph_opt.egraph import primitives
from egraph_opt.egraph.pattern import parse_extents
from egraph_opt.egraph.snapshot import ENode, Snapshot, fraction, no_collection
from egraph_opt.extract.forms import Forms
from egraph_opt.extract.problem import Alternative, Body, Problem, buffer_name, signature, well_founded
from egraph_opt.extract.roofline import STEP_SECONDS, Device, call_seconds, kernel_seconds
from egraph_opt.ir import scalar
from egraph_opt.ir.expr import bounds
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.terms import Apply, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View
from egraph_opt.limits import Check, unlimited

__all__ = ["Alternative", "Body", "Extraction", "Problem", "buffer_name", "signature"]

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
# Library operators whose answer depends on where NaN stands.
_ORDERED = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"})
# Work of one load and of one view's index arithmetic, in float additions.
LOAD, INDEX = 1.0, 0.1
# A reduction over more points than this is not worth much as a plain loop nest: no register blocking.
LONG_REDUCTION, LONG_REDUCTION_FACTOR = 128, 6.0


class Extraction:
    """Builds the :class:`Problem` of one snapshot. ``check`` is called again and again and may raise to end it."""

    check: Check = staticmethod(unlimited)

    @no_collection()
    def __init__(self, snapshot: Snapshot, device: Device, unavailable: Collection[str] = ()) -> None:
        """``unavailable`` are library operators that the model's opset does not have."""
        self.snapshot = snapshot
        self.device = device
        self.unavailable = frozenset(unavailable)
        # Whether kernels may take the largest and the least of elements in any order: with NaN among them it matters.
        self.any_order = False
        self.extents = snapshot.extents
        self.size = {owner: prod(extents) for owner, extents in self.extents.items()}
        self.bodies: dict[int, list[Body]] = {}
        # The best body of each class that only reads a buffer: where kernels would grow too large, they are cut there.
        self._reads: dict[int, Body] = {}
        # The smallest body of each class, for where there is no buffer to cut at.
        self._smallest: dict[int, Body] = {}
        self.cost: dict[int, float] = {}
        # Buffers whose cost fell after it was first known.
        self._fallen: set[int] = set()
        # The parts that an e-node (by its identity: the snapshot keeps it) was combined with: what the bodies read,
        # their sizes and their densities.
        self._combined: dict[int, dict[tuple[Body, ...], tuple[frozenset[int], int, float]]] = {}
        self._operators: dict[int, frozenset[str]] = {}
        self._reading: dict[frozenset[int], tuple[frozenset[str], int]] = {}
        # Of e-nodes by their identity: what library calls take, and which buffers they read.
        self._calls_known: dict[int, tuple[float, tuple[int, ...]]] = {}
        self._terms: dict[Body, Tensor] = {}
        self._forms = Forms(self.extents)
        # The buffers that every one is a reshape of.
        self._reshapes: dict[int, set[int]] = {}
        self.parents: dict[int, list[tuple[int, ENode]]] = {}
        for owner, nodes in snapshot.classes.items():
            for node in nodes:
                if node.constructor == "Reshape":
                    self._reshapes.setdefault(owner, set()).add(node.children[0])
                for child in self._operands(node):
                    self.parents.setdefault(child, []).append((owner, node))
        self.constant = self._constants()

    def _operands(self, node: ENode) -> tuple[int, ...]:
        if node.constructor in ("Nil", "Cons"):
            return ()
        return self.snapshot.arguments(node.children[0]) if node.constructor == "Call" else node.children

    def _constants(self) -> set[int]:
        """Classes that depend on weights only."""
        found: set[int] = set()
        left: dict[int, int] = {}
        pending = [
            owner
            for owner, nodes in self.snapshot.classes.items()
            for node in nodes
            if node.constructor == "Fill" or (node.constructor == "Source" and node.arguments[2] == "constant")
        ]
        while pending:
            child = pending.pop()
            if child in found:
                continue
            found.add(child)
            for owner, node in self.parents.get(child, ()):
                # An operand that is there twice is counted twice.
                left[id(node)] = left.get(id(node), len(self._operands(node))) - 1
                if not left[id(node)]:
                    pending.append(owner)
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
            self.check()
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
                if owner in self.cost:
                    self._fallen.add(owner)
                self.cost[owner] = cost
                return cost
            return None
        improved = False
        for body in self._combine(owner, node):
            improved |= self._offer(owner, body)
        return self.bodies[owner][0].rank if improved else None

    def _body(self, owner: int, node: ENode, parts: tuple[Body, ...], density: float, leaves: frozenset[int]) -> Body:
        rank = self._kernel_bound(owner, density, leaves) + self._leaf_cost(leaves)
        return Body(node, parts, density, leaves, self._read(leaves)[0], rank, 1 + sum([part.size for part in parts]))

    def _leaf_cost(self, leaves: frozenset[int]) -> float:
        return sum([self.cost.get(leaf, inf) for leaf in (sorted(leaves) if len(leaves) > 1 else leaves)])

    def _read(self, leaves: frozenset[int]) -> tuple[frozenset[str], int]:
        """The operators that may fill some buffers, and the elements of these."""
        found = self._reading.get(leaves)
        if found is None:
            kind = frozenset[str]().union(*[self._producers(leaf) for leaf in leaves])
            found = self._reading[leaves] = kind, sum([self.size[leaf] for leaf in leaves])
        return found

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
        least = self._smallest.get(owner)
        if least is None or (len(body.leaves), body.size) < (len(least.leaves), least.size):
            self._smallest[owner] = body
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
        if node.constructor == "Reduce" and self._stays(owner, node):
            return
        combinations: Iterable[tuple[tuple[Body, ...], bool]]
        if len(node.children) == 1:
            least = self._least(node.children[0])
            combinations = [((body,), False) for body in self.bodies.get(node.children[0], ())]
            if least is not None:
                combinations.append(((least,), True))
        else:
            combinations = self._combinations(node)
        constant = owner in self.constant
        known, fallen = self._combined.setdefault(id(node), {}), self._fallen
        for combined, smallest in combinations:
            parts, before = combined, known.get(combined)
            if before is not None and fallen.isdisjoint(before[0]):  # it would be the same body again
                continue
            if before is None or len(before[0]) > LEAVES:
                parts = combined if constant else self._cut(node.children, combined)
                before = known.get(parts)
                if before is not None and fallen.isdisjoint(before[0]):
                    continue
            leaves = _leaves(parts) if before is None else before[0]
            if len(leaves) > LEAVES and not smallest and not constant:  # what is constant is no kernel
                continue
            if before is None:
                size = 1 + sum([part.size for part in parts])
                if size > LARGEST_BODY:
                    continue
                before = known[parts] = leaves, size, self._density(node, parts)
            leaves, size, density = before
            if self._may_improve(owner, size, density, leaves):
                yield self._body(owner, node, parts, density, leaves)

    def _combinations(self, node: ENode) -> Iterable[tuple[tuple[Body, ...], bool]]:
        """The parts to combine, and whether they are the smallest of all."""
        # The best of each kind is enough to combine.
        options = [_diverse(self.bodies.get(child, [])) for child in node.children]
        yield from zip(product(*options), repeat(False))
        # One of the smallest parts, whatever it reads: what is built on it may have to be small, and a concatenation of
        # many tensors has no part that could be a buffer.
        least = [self._least(child) for child in node.children]
        if None not in least:
            yield tuple([body for body in least if body is not None]), True

    def _may_improve(self, owner: int, size: int, density: float, leaves: frozenset[int]) -> bool:
        """False where a class certainly keeps no body of these: it has a better one over the same buffers."""
        least = self._smallest.get(owner)
        if least is None or (len(leaves), size) < (len(least.leaves), least.size):
            return True
        for other in self.bodies[owner]:
            if other.leaves == leaves and density >= other.density * (1 - 1e-9):
                return False
        return True

    def _stays(self, owner: int, node: ENode) -> bool:
        """Whether a largest or least element is left to the library call there is: with NaN its order matters."""
        if self.any_order or owner in self.constant:
            return False
        for other in self.snapshot.classes[owner]:
            whole = other.children[0] if other.constructor == "View" else owner
            for read in self.snapshot.classes[whole]:
                if read.constructor == "Read" and not _ORDERED.isdisjoint(self._producers(read.children[0])):
                    return True
        return False

    def _cut(self, children: Sequence[int], parts: tuple[Body, ...]) -> tuple[Body, ...]:
        """The parts with the largest read from memory, until one kernel can hold them."""
        if len(parts) == 1:
            if len(parts[0].leaves) <= LEAVES and parts[0].size < LARGEST_BODY:
                return parts
        elif len(_leaves(parts)) <= LEAVES and sum([part.size for part in parts]) < LARGEST_BODY:
            return parts
        found = list(parts)
        for i in sorted(range(len(parts)), key=lambda i: (-len(parts[i].leaves), -parts[i].size, i)):
            if len(_leaves(found)) <= LEAVES and sum([part.size for part in found]) < LARGEST_BODY:
                break
            found[i] = self._least(children[i]) or found[i]
        return tuple(found)

    def _least(self, owner: int) -> Body | None:
        return self._reads.get(owner) or self._smallest.get(owner)

    def _density(self, node: ENode, parts: tuple[Body, ...]) -> float:
        inner = sum([part.density for part in parts])
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
                if str(node.arguments[0]) in self.unavailable and owner not in self.constant:
                    return
                yield *self._called(node), None
            case "Reshape" if node.children[0] != owner:
                same = self.extents[node.children[0]] == self.extents[owner]
                yield 0.0 if same else self.device.reshape_seconds, (node.children[0],), None
            case "Compute":
                for body in self.bodies.get(node.children[0], []):
                    if owner in body.leaves or any(self._passes(leaf, owner) for leaf in body.leaves):
                        continue
                    bound = self._kernel_bound(owner, body.density, body.leaves)
                    yield bound, tuple(sorted(body.leaves)), body

    def _called(self, node: ENode) -> tuple[float, tuple[int, ...]]:
        """Estimate and buffers of a library call."""
        found = self._calls_known.get(id(node))
        if found is None:
            arguments = self.snapshot.arguments(node.children[0])
            shapes = tuple(self.extents[a] for a in arguments)
            operator, attributes = str(node.arguments[0]), str(node.arguments[1])
            bound = call_seconds(self.device, operator, attributes, shapes, parse_extents(str(node.arguments[3])))
            found = self._calls_known[id(node)] = bound, tuple(dict.fromkeys(arguments))
        return found

    def _kernel_bound(self, owner: int, density: float, leaves: frozenset[int]) -> float:
        elements = self.size[owner]
        reach = min(self._read(leaves)[1], int(elements * max(density, 1.0)))
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
            alternative = Alternative(step, needs, bound)
            if body is not None:
                # The layers of a model repeat each other, and texts take longer to make than all else of a step.
                alternative.__dict__["text"] = self._forms.text(body, alternative)
            yield alternative

    def _passes(self, leaf: int, owner: int) -> bool:
        """A kernel reading a reshape of the buffer it fills would wait for itself."""
        return owner in self._reshapes.get(leaf, ())

    def term(self, body: Body) -> Tensor:
        """The kernel body as a term over buffer names."""
        if body not in self._terms:
            self._terms[body] = self._term(body.node, [self.term(part) for part in body.parts])
        return self._terms[body]

    def _term(self, node: ENode, parts: list[Tensor]) -> Tensor:
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

    @no_collection()
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
            self.check()
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
            # What every step costs on top counts, too: of small ones it is most.
            limit = HOPELESS * (STEP_SECONDS + self._buffer_cost(owner, found[0])) if found else 0.0
            found = [a for a in found if STEP_SECONDS + self._buffer_cost(owner, a) <= limit]
            result.alternatives[owner] = found
            pending += [need for a in found for need in a.needs]
        for owner, step in well_founded(constants, result.given).items():
            result.folded[owner] = step.tensor if isinstance(step, Compute) else step
        return result


def _leaves(parts: Sequence[Body]) -> frozenset[int]:
    """The buffers that some parts read together."""
    if len(parts) == 1:
        return parts[0].leaves
    return frozenset[int]().union(*[part.leaves for part in parts])


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
