"""Counterexamples as Python code to paste: sources with their values, both terms, both results."""

from __future__ import annotations

import pprint
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from egraph_opt.egraph import primitives
from egraph_opt.egraph.language import Approximate, Rule, RuleGroup
from egraph_opt.egraph.pattern import parse_extents
from egraph_opt.egraph.snapshot import ENode, Snapshot
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
    show,
)
from egraph_opt.testing.values import Values, drawn_values, sources

Array = np.ndarray[Any, Any]
# Longer arrays are written as the call that draws them.
_LITERAL = 48
_INDENTED = 100


@dataclass(frozen=True)
class Counterexample:
    """Two terms that a rule made equal, and values for which they are not; or a program on which the rule raised.

    ``kind`` tells in words what is wrong. ``left`` is what stood in the program, ``right`` what the rule made of it;
    None where the rule raised ``error``.
    """

    rule: Rule = field(repr=False)
    program: Program
    kind: str
    seed: int
    left: Tensor | None = None
    right: Tensor | None = None
    values: Values = "normal"
    arithmetic: str = "FloatArithmetic"
    error: str = ""

    @property
    def reproduction(self) -> str:
        """Python code that shows the difference when it is pasted and run."""
        lines = [f"# rule {self.rule.name!r} ({_exactness(self.rule)}), seed {self.seed}: {self.kind}"]
        return "\n".join([*lines, *(self._raising() if self.left is None else self._differing())]) + "\n"

    def _differing(self) -> Iterator[str]:
        assert self.left is not None
        assert self.right is not None
        codes = [code(self.left), code(self.right)]
        arrays = dict(self._arrays(set(_sources(self.left)) | set(_sources(self.right))))
        yield from _imports(" ".join([*codes, *arrays.values(), f"{self.arithmetic}("]), "evaluate")
        yield "values = {"
        yield from (f"    {name!r}: {text}," for name, text in arrays.items())
        yield "}"
        for name, term, text in zip(("left", "right"), (self.left, self.right), codes, strict=True):
            yield f"# {show(term)}"
            yield f"{name} = {text}"
        yield f"one = evaluate(left, values, {self.arithmetic}())"
        yield f"other = evaluate(right, values, {self.arithmetic}())"
        yield 'print("left: ", one)'
        yield 'print("right:", other)'

    def _raising(self) -> Iterator[str]:
        definitions = [(name, code(term)) for name, term in self.program.definitions]
        inputs = ", ".join(code(source) for source in sources(self.program).values())
        found, imported = where(self.rule)
        yield from _imports(" ".join([inputs, *(text for _, text in definitions)]), "")
        yield "from egraph_opt.ir.program import Program"
        yield "from egraph_opt.testing import replay"
        yield from imported
        yield f"# {self.error}"
        yield f"inputs = ({inputs}{',' if inputs else ''})"
        yield "definitions = ("
        yield from (f"    ({name!r}, {text})," for name, text in definitions)
        yield ")"
        yield f"program = Program(inputs, definitions, {self.program.outputs!r})"
        yield f"print(replay({found}, program, seed={self.seed}))"

    def _arrays(self, used: set[str]) -> Iterator[tuple[str, str]]:
        for name, source in sources(self.program).items():
            if name not in used:
                continue
            values = drawn_values(self.values, source.extents, seed=self.seed, name=name)
            if values.size <= _LITERAL:
                text = pprint.pformat(values.tolist(), width=_INDENTED, compact=True).replace("\n", "\n        ")
                yield name, f"np.array({text}).reshape({source.extents!r})"
            else:
                yield name, f"drawn_values({self.values!r}, {source.extents!r}, seed={self.seed}, name={name!r})"


def _exactness(rule: Rule) -> str:
    exactness = rule.exactness
    return f"approximate({exactness.bound})" if isinstance(exactness, Approximate) else exactness


def _imports(text: str, evaluated: str) -> Iterator[str]:
    if "np." in text:
        yield "import numpy as np"
    numbers = [name for name in ("inf", "nan") if f"{name}," in text or f"{name}]" in text or f"{name})" in text]
    if numbers:
        yield f"from numpy import {', '.join(numbers)}"
    if "Fraction(" in text:
        yield "from fractions import Fraction"
    if "maps.parse(" in text:
        yield "from egraph_opt.ir import maps"
    for module, names in _ARITHMETICS.items():
        for name in names:
            if f"{name}(" in text:
                yield f"from {module} import {name}"
    if evaluated:
        yield f"from egraph_opt.ir.interpreter import {evaluated}"
    terms = [name for name in _TERMS if f"{name}(" in text]
    yield f"from egraph_opt.ir.terms import {', '.join(terms)}"
    if "drawn_values(" in text:
        yield "from egraph_opt.testing import drawn_values"


_ARITHMETICS = {
    "egraph_opt.ir.interpreter": ("FloatArithmetic", "ModularArithmetic"),
    "egraph_opt.ir.arithmetics": ("RationalArithmetic", "SequentialArithmetic", "TwoFieldArithmetic"),
}
_TERMS = ("Apply", "Call", "Compute", "Fill", "Read", "Reduce", "Reshape", "Softmax", "Source", "View")


def _sources(term: Tensor | Buffer) -> Iterator[str]:
    if isinstance(term, Source):
        yield term.name
    for child in getattr(term, "arguments", ()) or [getattr(term, name, None) for name in ("buffer", "tensor")]:
        if child is not None:
            yield from _sources(child)


def code(term: Tensor | Buffer) -> str:
    """The Python expression that makes a term."""
    match term:
        case Read(buffer):
            return f"Read({code(buffer)})"
        case View(inner, index):
            return f"View({code(inner)}, maps.parse({index.text!r}))"
        case Reduce(operation, inner, count):
            return f"Reduce({operation!r}, {code(inner)}, {count})"
        case Apply(function, arguments):
            return f"Apply({function!r}, ({''.join(code(a) + ', ' for a in arguments).rstrip()}))"
        case Softmax(inner, count):
            return f"Softmax({code(inner)}, {count})"
        case Fill(value, extents):
            return f"Fill(Fraction({str(value)!r}), {extents!r})"
        case Source(name, extents, constant):
            return f"Source({name!r}, {extents!r}{', True' if constant else ''})"
        case Call(operator, attributes, operands, extents):
            inside = "".join(code(a) + ", " for a in operands).rstrip()
            return f"Call({operator!r}, {attributes!r}, ({inside}), {extents!r})"
        case Compute(inner):
            return f"Compute({code(inner)})"
        case Reshape(buffer, extents):
            return f"Reshape({code(buffer)}, {extents!r})"


def where(rule: Rule) -> tuple[str, list[str]]:
    """An expression for a rule, and the import it needs: modules that were imported are searched for it."""
    for name, module in sorted((str(k), v) for k, v in sys.modules.items() if v is not None):
        if name.startswith("_") or name.split(".")[0] in sys.stdlib_module_names:
            continue
        for attribute, value in sorted(getattr(module, "__dict__", {}).items()):
            if value is rule:
                return attribute, [f"from {name} import {attribute}"]
            if isinstance(value, RuleGroup) and any(r is rule for r in value.rules):
                found = f"next(r for r in {attribute}.rules if r.name == {rule.name!r})"
                return found, [f"from {name} import {attribute}"]
    return "rule", [f"# rule = the rule {rule.name!r} under test"]


def term_of(snapshot: Snapshot, node: ENode, chosen: Mapping[int, ENode]) -> Tensor | Buffer:
    """The term of an e-node, with the e-node ``chosen`` for every class below it.

    Raises EgraphOptError where the e-node does not type-check.
    """
    known: dict[int, Tensor | Buffer] = {}

    def of_class(owner: int) -> Any:
        if owner not in known:
            known[owner] = of_node(chosen[owner])
        return known[owner]

    def of_node(node: ENode) -> Tensor | Buffer:
        a = node.arguments
        if node.constructor == "Call":
            arguments = tuple(of_class(owner) for owner in snapshot.arguments(node.children[0]))
            return Call(str(a[0]), str(a[1]), arguments, parse_extents(str(a[3])))
        below = [of_class(owner) for owner in node.children]
        match node.constructor:
            case "Read":
                return Read(below[0])
            case "View":
                return View(below[0], primitives.map_of(str(a[1])))
            case "Sum":
                return Reduce("sum", below[0], int(a[1]))
            case "Reduce":
                return Reduce(str(a[0]), below[0], int(a[2]))
            case "Mul" | "Add":
                return Apply(node.constructor.lower(), tuple(below))
            case "Apply1" | "Apply2":
                return Apply(str(a[0]), tuple(below))
            case "Softmax":
                return Softmax(below[0], int(a[1]))
            case "Fill":
                return Fill(Fraction(str(a[0])), parse_extents(str(a[1])))
            case "Source":
                return Source(str(a[0]), parse_extents(str(a[1])), a[2] == "constant")
            case "Compute":
                return Compute(below[0])
            case "Reshape":
                return Reshape(below[0], parse_extents(str(a[1])))
        raise AssertionError(node.constructor)

    return of_node(node)
