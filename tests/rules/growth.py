"""Terms grown from the left-hand side of a rule: one rule alone, on programs with extents that barely fit."""

from __future__ import annotations

import random
from fractions import Fraction
from math import prod

from egraph_opt.egraph.language import Constant, Node, Pattern, Rule, Variable
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Buffer, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View


class Unfit(Exception):  # noqa: N818 - not an error
    """The random choices do not make a term of this pattern."""


class Grower:
    """Grows one term of a rule's left-hand side with the random choices of a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bound: dict[str, object] = {}
        self.sources: list[Source] = []

    def program(self, rule: Rule) -> Program:
        extents = self.extents(self.random.randint(0, 4))
        if rule.left.sort == "Buffer":
            return self._program(Read(self.buffer(rule.left, extents)))
        return self._program(self.tensor(rule.left, extents))

    def _program(self, term: Tensor) -> Program:
        return Program(tuple(self.sources), (("y", term),), ("y",))

    def extents(self, rank: int) -> Extents:
        return tuple(self.random.choice((1, 2, 2, 3, 4)) for _ in range(rank))

    def source(self, extents: Extents) -> Source:
        self.sources.append(Source(f"s{len(self.sources)}", extents, self.random.random() < 0.3))
        return self.sources[-1]

    def tensor(self, pattern: Pattern, extents: Extents) -> Tensor:
        if isinstance(pattern, Variable):
            found = self.bound.setdefault(pattern.name, None) or Read(self.source(extents))
            self.bound[pattern.name] = found
            if found.extents != extents:  # type: ignore[attr-defined]
                raise Unfit
            return found  # type: ignore[return-value]
        assert isinstance(pattern, Node)
        a = pattern.arguments
        match pattern.constructor:
            case "View":
                index = self.map(a[1], extents)
                return View(self.tensor(a[0], index.source), index)
            case "Sum":
                count = self.integer(a[1])
                return Reduce("sum", self.tensor(a[0], (*extents, *self.extents(count))), count)
            case "Reduce":
                count = self.integer(a[2])
                operation = self.text(a[0], ("max", "min", "sum"))
                return Reduce(operation, self.tensor(a[1], (*extents, *self.extents(count))), count)
            case "Softmax":
                count = self.integer(a[1])
                if count > len(extents):
                    raise Unfit
                return Softmax(self.tensor(a[0], extents), count)
            case "Mul" | "Add":
                return Apply(pattern.constructor.lower(), (self.tensor(a[0], extents), self.tensor(a[1], extents)))
            case "Apply1":
                return Apply(self.text(a[0], ("relu", "sigmoid", "exp")), (self.tensor(a[1], extents),))
            case "Apply2":
                function = self.text(a[0], ("sub", "prelu"))
                return Apply(function, (self.tensor(a[1], extents), self.tensor(a[2], extents)))
            case "Fill":
                return Fill(Fraction(self.text(a[0], ("1/2", "3"))), extents)
            case "Read":
                return Read(self.buffer(a[0], extents))
        raise AssertionError(pattern.constructor)

    def buffer(self, pattern: Pattern, extents: Extents) -> Buffer:
        if isinstance(pattern, Variable):
            return self.source(extents)
        assert isinstance(pattern, Node)
        a = pattern.arguments
        match pattern.constructor:
            case "Compute":
                return Compute(self.tensor(a[0], extents))
            case "Reshape":
                other = self.random.choice(self.factorings(prod(extents)))
                same = isinstance(a[0], Node) and a[0].constructor == "Call" and a[1] == a[0].arguments[3]
                return Reshape(self.buffer(a[0], extents if same else other), extents)
            case "Call":
                return self.call(a, extents)
        raise AssertionError(pattern.constructor)

    def call(self, fields: tuple[Pattern, ...], extents: Extents) -> Call:
        """MatMul for two axes, Conv for three and more; or the call that the pattern spells out."""
        inner = self.random.randint(1, 3)
        if fields[0] == Constant("String", "Transpose"):
            (argument,) = self.arguments(fields[2], [extents[::-1]])
            return Call("Transpose", format_attributes(perm=(1, 0)), (argument,), extents)
        if fields[0] == Constant("String", "MatMul"):
            if len(extents) != 2:
                raise Unfit
            shapes = [(extents[0], inner), (inner, extents[1])]
            return Call("MatMul", "", tuple(self.arguments(fields[2], shapes)), extents)
        if len(extents) == 2:
            operands = ((extents[0], inner), (inner, extents[1]))
            return Call("MatMul", "", tuple(map(self.source, operands)), extents)
        if len(extents) < 3:
            raise Unfit
        spatial = len(extents) - 2
        attributes = format_attributes(
            dilations=[1] * spatial, group=1, pads=[0] * (2 * spatial), strides=[1] * spatial
        )
        operands = ((extents[0], inner, *extents[2:]), (extents[1], inner, *(1,) * spatial))
        return Call("Conv", attributes, tuple(map(self.source, operands)), extents)

    def arguments(self, chain: Pattern, shapes: list[Extents]) -> list[Buffer]:
        """The buffers of a spelled-out argument list."""
        found = []
        for extents in shapes:
            assert isinstance(chain, Node)
            found.append(self.buffer(chain.arguments[0], extents))
            chain = chain.arguments[1]
        return found

    def integer(self, pattern: Pattern) -> int:
        if isinstance(pattern, Constant):
            return int(pattern.value)
        assert isinstance(pattern, Variable)
        return self.bound.setdefault(pattern.name, self.random.randint(1, 2))  # type: ignore[return-value]

    def text(self, pattern: Pattern, choices: tuple[str, ...]) -> str:
        if isinstance(pattern, Constant):
            return str(pattern.value)
        assert isinstance(pattern, Variable)
        return self.bound.setdefault(pattern.name, self.random.choice(choices))  # type: ignore[return-value]

    def factorings(self, size: int) -> list[Extents]:
        found: list[Extents] = [(size,), (1, size)]
        found += [(d, size // d) for d in range(2, size) if size % d == 0]
        found += [(a, b, size // a // b) for a in (2, 3) for b in (2, 3) if size % (a * b) == 0]
        return found

    def map(self, pattern: Pattern, result: Extents) -> IndexMap:
        """A map onto ``result``: identity, permutation, reshape, broadcast, window, stride, padding or phases."""
        assert isinstance(pattern, Variable)
        index = self.bound.setdefault(pattern.name, self._map(result))
        if index.result != result:  # type: ignore[attr-defined]
            raise Unfit
        return index  # type: ignore[return-value]

    def _map(self, result: Extents) -> IndexMap:
        pick = self.random
        kind = pick.choice(("identity", "permutation", "reshape", "affine", "affine", "affine", "phases"))
        if kind == "identity":
            return maps.identity(result)
        if kind == "permutation":
            order = list(range(len(result)))
            pick.shuffle(order)
            return maps.permute([result[order.index(axis)] for axis in range(len(order))], order)
        if kind == "reshape":
            return maps.reshape(pick.choice(self.factorings(prod(result))), result)
        indices: list[Expr] = []
        source: list[int] = []
        free = list(range(len(result)))
        while free or pick.random() < 0.2:
            own = [free.pop(0)] if free else []
            if free and pick.random() < 0.5:
                own.append(free.pop(pick.randrange(len(free))))
            e = Expr(pick.choice((0, 0, 0, -1, 1)))
            for i in own:
                if pick.random() < 0.85:
                    e = e + ex.iterator(i) * pick.choice((1, 1, 1, 2, 3, -1))
            if kind == "phases" and pick.random() < 0.6:
                e = (ex.floordiv if pick.random() < 0.5 else ex.modulo)(e, pick.choice((2, 3)), result)
            low, high = ex.bounds(e, result)
            e = e + (-low if low < -2 else 0)
            indices.append(e)
            source.append(max(1, min(5, high + 1 - min(low, 0) + pick.choice((-1, 0, 0, 1)))))
        order = list(range(len(indices)))
        pick.shuffle(order)
        guards = [ex.modulo(ex.iterator(0) + 1, 2, result)] if result and pick.random() < 0.15 else []
        return maps.index_map([source[i] for i in order], result, [indices[i] for i in order], guards)
