"""Programs grown from the left-hand sides of a rule: strategies that draw whatever the pattern leaves open."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any

from hypothesis import assume, reject
from hypothesis import strategies as st

from egraph_opt.egraph.language import Rule
from egraph_opt.egraph.pattern import Constant, Node, Pattern, Variable, parse_extents, parts
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import (
    Apply,
    Buffer,
    Call,
    Compute,
    Fill,
    Read,
    Reduce,
    Reshape,
    Softmax,
    Source,
    Tensor,
    View,
    children,
)
from egraph_opt.testing import calls, strategies
from egraph_opt.testing.operators import replaced, sizes

_MOST_MEMBERS = 3


def programs_of(rule: Rule, *, near_misses: bool = True) -> st.SearchStrategy[Program]:
    """Programs in which the left-hand side of a rule stands, with drawn extents, maps, functions and attributes.

    For rules that match several terms the terms share variables as they do in the rule. With ``near_misses`` some
    programs have a view changed a little, so that the rule barely does or does not match.
    """
    grown = _grown(rule)
    return st.one_of(grown, grown, changed(grown)) if near_misses else grown


def _grown(rule: Rule) -> st.SearchStrategy[Program]:
    # No argument of a composite: hypothesis would write out the whole rule wherever it names the strategy.
    @st.composite
    def grown(draw: st.DrawFn) -> Program:
        return _grow(draw, rule)

    return grown()


def _grow(draw: st.DrawFn, rule: Rule) -> Program:
    grower = Grower(draw, {fact.variable.name for fact in rule.facts})
    terms: list[Tensor | Buffer] = []
    try:
        if rule.combine is not None:
            shared = {variable.name for variable in rule.sharing}
            for _ in range(draw(st.integers(2, _MOST_MEMBERS))):
                grower.bound = {name: value for name, value in grower.bound.items() if name in shared}
                terms.append(grower.grow(rule.left))
        elif rule.united is not None and rule.beside is not None:
            terms = grower.beside(rule)
        else:
            terms = [grower.grow(side) for side in rule.matched]
    except EgraphOptError:
        # What was drawn does not type-check: no term of this pattern.
        reject()
    results = [term if isinstance(term, Tensor) else Read(term) for term in terms]
    names = ["y" if i == 0 else f"y{i}" for i in range(len(results))]
    program = Program(tuple(grower.sources), tuple(zip(names, results, strict=True)), tuple(names))
    assume(sizes(program) <= strategies.MOST_ELEMENTS)
    return program


@dataclass
class Grower:
    """Grows terms from patterns; ``bound`` maps the names of variables to what they stand for."""

    draw: st.DrawFn
    constants: set[str] = field(default_factory=set)
    bound: dict[str, Any] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def grow(self, pattern: Pattern) -> Tensor | Buffer:
        """A term of a pattern of either sort."""
        extents = self.known(pattern)
        return self.buffer(pattern, extents) if pattern.sort == "Buffer" else self.tensor(pattern, extents)

    def beside(self, rule: Rule) -> list[Tensor | Buffer]:
        """Two terms of which a rule concludes that variables are equal; the second variable is the first one in other
        words, or a part of it."""
        assert rule.united is not None
        assert rule.beside is not None
        one, other = rule.united
        first = self.grow(rule.left)
        value = self.bound[one.name]
        tensor = value if isinstance(value, Tensor) else Read(value)
        order = self.draw(st.permutations(range(len(tensor.extents))))
        turned = maps.permute(tensor.extents, order)
        back = maps.inverse(turned)
        assume(back is not None)
        assert back is not None
        inner: Tensor = tensor
        if len(tensor.extents) > 0 and self.draw(st.integers(0, 2)):
            axis = self.draw(st.integers(0, len(tensor.extents) - 1))
            smaller = tuple(max(1, n - 1) if i == axis else n for i, n in enumerate(tensor.extents))
            cropped = maps.identity(tensor.extents)
            front = maps.index_map(tensor.extents, smaller, cropped.indices)
            inner = View(View(tensor, front), maps.index_map(smaller, tensor.extents, cropped.indices))
        changed = View(View(inner, turned), back)
        self.bound[other.name] = changed if other.sort == "Tensor" else Compute(changed)
        return [first, self.grow(rule.beside)]

    def known(self, pattern: Pattern) -> Extents | None:
        """The extents of what a pattern stands for, where what is bound already tells."""
        match pattern:
            case Variable(_, name) if name in self.bound:
                return getattr(self.bound[name], "extents", None)
            case Node(_, "View", (_, Variable(_, name))) if name in self.bound:
                return self.bound[name].result  # type: ignore[no-any-return]
            case Node(_, "Sum", (inner, count)) | Node(_, "Reduce", (_, inner, count)):
                extents, number = self.known(inner), self.number(count)
                return None if extents is None or number is None else extents[: max(0, len(extents) - number)]
            case Node(_, "Mul" | "Add", (left, right)) | Node(_, "Apply2", (_, left, right)):
                return self.known(left) or self.known(right)
            case Node(_, "Fill" | "Reshape", (_, extents)) | Node(_, "Call", (_, _, _, extents)):
                return self.shape(extents)
            case Node(_, "Read" | "Compute" | "Softmax" | "Apply1", arguments):
                return self.known(arguments[1 if pattern.constructor == "Apply1" else 0])
        return None

    def number(self, pattern: Pattern) -> int | None:
        if isinstance(pattern, Constant):
            return int(pattern.value)
        return self.bound.get(pattern.name) if isinstance(pattern, Variable) else None

    def shape(self, pattern: Pattern) -> Extents | None:
        if isinstance(pattern, Constant):
            return parse_extents(str(pattern.value))
        return self.bound.get(pattern.name) if isinstance(pattern, Variable) else None

    def drawn(self, rank: int | None = None) -> Extents:
        return self.draw(strategies.extents(rank))

    def source(self, extents: Extents, constant: bool | None = None) -> Source:
        flag = self.draw(st.integers(0, 9)) > 6 if constant is None else constant
        self.sources.append(Source(f"s{len(self.sources)}", extents, flag))
        return self.sources[-1]

    def again(self, extents: Extents, constant: bool) -> Source | None:
        """Now and then a source that is there already: two variables may stand for one term."""
        found = [s for s in self.sources if s.extents == extents and (s.constant or not constant)]
        return found[0] if found and self.draw(st.integers(0, 7)) == 7 else None

    def variable(self, pattern: Variable, extents: Extents | None) -> Any:
        found = self.bound.get(pattern.name)
        if found is None:
            shape = self.drawn() if extents is None else extents
            constant = pattern.name in self.constants
            source = self.again(shape, constant) or self.source(shape, constant or None)
            found = self.bound[pattern.name] = Read(source) if pattern.sort == "Tensor" else source
        assume(extents is None or found.extents == extents)
        return found

    def tensor(self, pattern: Pattern, extents: Extents | None) -> Tensor:
        """A tensor term of a pattern, of these extents where they are given."""
        if isinstance(pattern, Variable):
            return self.variable(pattern, extents)  # type: ignore[no-any-return]
        assert isinstance(pattern, Node)
        a = pattern.arguments
        match pattern.constructor:
            case "View":
                if self.known(a[0]) is None and self.optional(a[1]) is None and calls_something(a[0]):
                    # A call has extents of its own, a map fits any.
                    called = self.tensor(a[0], None)
                    return View(called, self.map(a[1], called.extents, extents))
                index = self.map(a[1], self.known(a[0]), extents)
                assume(extents is None or index.result == extents)
                return View(self.tensor(a[0], index.source), index)
            case "Sum" | "Reduce":
                inner, number = (a[0], a[1]) if pattern.constructor == "Sum" else (a[1], a[2])
                operation = "sum" if pattern.constructor == "Sum" else self.text(a[0], ("max", "min"))
                return self.reduced(operation, inner, self.integer(number), extents)
            case "Softmax":
                term = self.tensor(a[0], self.known(a[0]) if extents is None else extents)
                count = self.integer(a[1])
                assume(1 <= count <= len(term.extents))
                return Softmax(term, count)
            case "Mul" | "Add":
                return Apply(pattern.constructor.lower(), self.operands(a, extents))
            case "Apply1" | "Apply2":
                arguments = self.operands(a[1:], extents)
                return Apply(self.text(a[0], strategies.functions(len(arguments))), arguments)
            case "Fill":
                shape = self.extents(a[1], extents)
                return Fill(Fraction(self.text(a[0], ("1", "0", "1/2", "-3", "1/4", "1/9"))), shape)
            case "Read":
                return Read(self.buffer(a[0], extents))
        raise AssertionError(pattern.constructor)

    def reduced(self, operation: str, inner: Pattern, count: int, extents: Extents | None) -> Tensor:
        wanted = self.known(inner)
        if extents is not None and wanted is None:
            wanted = (*extents, *self.drawn(count))
        if wanted is None and not calls_something(inner):
            wanted = (*self.drawn(), *self.drawn(count))
        term = self.tensor(inner, wanted)
        assume(count <= len(term.extents))
        found = Reduce(operation, term, count)
        assume(extents is None or found.extents == extents)
        return found

    def operands(self, patterns: tuple[Pattern, ...], extents: Extents | None) -> tuple[Tensor, ...]:
        """Operands of equal extents; what knows its own extents, or must find them, comes first."""

        def rigid(position: int) -> int:
            nodes = [part for part in parts(patterns[position]) if isinstance(part, Node)]
            return -sum(10 if node.constructor in ("Call", "Reshape") else 1 for node in nodes)

        shape = extents
        for pattern in patterns:
            shape = self.known(pattern) if shape is None else shape
        found: dict[int, Tensor] = {}
        for position in sorted(range(len(patterns)), key=rigid):
            found[position] = self.tensor(patterns[position], shape)
            shape = found[position].extents
        return tuple(found[position] for position in range(len(patterns)))

    def buffer(self, pattern: Pattern, extents: Extents | None) -> Buffer:
        """A buffer term of a pattern, of these extents where they are given."""
        if isinstance(pattern, Variable):
            return self.variable(pattern, extents)  # type: ignore[no-any-return]
        assert isinstance(pattern, Node)
        a = pattern.arguments
        match pattern.constructor:
            case "Compute":
                return Compute(self.tensor(a[0], extents))
            case "Reshape":
                return self.reshape(a, extents)
            case "Call":
                return self.call(a, extents)
        raise AssertionError(pattern.constructor)

    def reshape(self, a: tuple[Pattern, ...], extents: Extents | None) -> Reshape:
        wanted = self.shape(a[1]) if extents is None else extents
        inner_is_call = isinstance(a[0], Node) and a[0].constructor == "Call"
        if wanted is None:
            inner = self.buffer(a[0], self.known(a[0]))
            # The extents of a call may have been bound as those of the result, too.
            wanted = self.shape(a[1]) or self.draw(st.sampled_from((inner.extents, *factored(inner.extents))))
        else:
            same = inner_is_call and a[1] == a[0].arguments[3]  # type: ignore[attr-defined]
            before = self.known(a[0]) or (wanted if same else self.draw(st.sampled_from(factored(wanted))))
            inner = self.buffer(a[0], before)
        return Reshape(inner, self.extents(a[1], wanted))

    def call(self, fields: tuple[Pattern, ...], extents: Extents | None) -> Call:
        operator_, attributes, chain, shape = fields
        listed = argument_patterns(chain)
        if listed is None and isinstance(chain, Variable) and chain.name in self.bound:
            known: list[Extents | None] | None = [argument.extents for argument in self.bound[chain.name]]
        else:
            known = None if listed is None else [self.known(p) for p in listed]
        wanted = self.shape(shape) if extents is None else extents
        operator = self.optional(operator_)
        found = self.draw(calls.operands(operator, self.optional(attributes), known, wanted))
        self.bind(operator_, found.operator)
        self.bind(attributes, found.attributes)
        assume(wanted is None or found.extents == wanted)
        if listed is not None:
            arguments = tuple(self.buffer(p, e) for p, e in zip(listed, found.operands, strict=True))
        else:
            assert isinstance(chain, Variable)
            arguments = self.bound.get(chain.name) or tuple(self.source(e) for e in found.operands)
            self.bound[chain.name] = arguments
        return Call(found.operator, found.attributes, arguments, self.extents(shape, found.extents))

    def optional(self, pattern: Pattern) -> str | None:
        if isinstance(pattern, Constant):
            return str(pattern.value)
        return self.bound.get(pattern.name) if isinstance(pattern, Variable) else None

    def bind(self, pattern: Pattern, value: Any) -> None:
        if isinstance(pattern, Variable):
            assume(self.bound.setdefault(pattern.name, value) == value)

    def extents(self, pattern: Pattern, wanted: Extents | None) -> Extents:
        """Literal, bound or drawn extents."""
        found = self.shape(pattern)
        if found is None:
            found = self.drawn() if wanted is None else wanted
            self.bind(pattern, found)
        assume(wanted is None or found == wanted)
        return found

    def integer(self, pattern: Pattern) -> int:
        found = self.number(pattern)
        if found is None:
            found = self.draw(st.integers(1, 2))
            self.bind(pattern, found)
        return found

    def text(self, pattern: Pattern, choices: tuple[str, ...] | st.SearchStrategy[str]) -> str:
        found = self.optional(pattern)
        if found is None:
            found = self.draw(st.sampled_from(choices) if isinstance(choices, tuple) else choices)
            self.bind(pattern, found)
        return found

    def map(self, pattern: Pattern, source: Extents | None, result: Extents | None) -> IndexMap:
        if isinstance(pattern, Constant):
            return maps.parse(str(pattern.value))
        assert isinstance(pattern, Variable)
        found = self.bound.get(pattern.name)
        if found is None:
            found = self.bound[pattern.name] = self.draw(strategies.index_maps(source, result))
        return found


def calls_something(pattern: Pattern) -> bool:
    """Whether a library call stands in a pattern."""
    return any(isinstance(part, Node) and part.constructor == "Call" for part in parts(pattern))


def factored(extents: Extents) -> list[Extents]:
    """Other extents of the same number of elements, the same first."""
    return [extents, *strategies.factorings(prod(extents))]


def argument_patterns(chain: Pattern) -> list[Pattern] | None:
    """The patterns of a spelled-out argument list; None for a variable."""
    found: list[Pattern] = []
    while isinstance(chain, Node) and chain.constructor == "Cons":
        found.append(chain.arguments[0])
        chain = chain.arguments[1]
    return found if isinstance(chain, Node) else None


def changed(strategy: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    """Near misses: the programs of a strategy, each with one view changed a little."""

    @st.composite
    def near(draw: st.DrawFn) -> Program:
        return _change(draw, draw(strategy))

    return near()


def _change(draw: st.DrawFn, program: Program) -> Program:
    """A program with one view changed: an index moved or dropped, one element more or less, another value outside."""
    views = [view for _, term in program.definitions for view in _views(term)]
    if not views:
        return program
    old = draw(st.sampled_from(views))
    new = draw(_near(old))
    try:
        definitions = tuple((name, replaced(term, old, new)) for name, term in program.definitions)
    except EgraphOptError:
        reject()
    changed = Program(program.inputs, definitions, program.outputs)
    assume(sizes(changed) <= strategies.MOST_ELEMENTS)
    return changed


def _views(term: Tensor | Buffer) -> list[View]:
    return [*([term] if isinstance(term, View) else []), *(v for child in children(term) for v in _views(child))]


@st.composite
def _near(draw: st.DrawFn, view: View) -> View:
    index = view.map
    if not index.source:
        return view
    axis = draw(st.integers(0, len(index.source) - 1))
    indices, fill = list(index.indices), index.fill
    kind = draw(st.sampled_from(("moved", "fewer", "more", "constant", "swapped", "filled")))
    if kind in ("fewer", "more"):
        extent = max(1, index.source[axis] + (1 if kind == "more" else -1))
        source = tuple(extent if i == axis else n for i, n in enumerate(index.source))
        cropped = maps.index_map(index.source, source, maps.identity(source).indices)
        return View(View(view.tensor, cropped), replace_source(index, source))
    match kind:
        case "moved":
            indices[axis] = indices[axis] + draw(st.sampled_from((1, -1)))
        case "constant":
            indices[axis] = indices[axis] * 0
        case "swapped":
            other = draw(st.integers(0, len(indices) - 1))
            indices[axis], indices[other] = indices[other], indices[axis]
        case "filled":
            fill = draw(st.sampled_from((1.0, -0.5, float("-inf"))))
    return View(view.tensor, maps.index_map(index.source, index.result, indices, index.guards, fill))


def replace_source(index: IndexMap, source: Extents) -> IndexMap:
    """The same indices into a tensor of other extents."""
    return maps.index_map(source, index.result, index.indices, index.guards, index.fill)
