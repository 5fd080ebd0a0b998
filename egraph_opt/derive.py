"""What one operator can become: saturate its plain definition and read the programs of its class.

``print(derive_operator("conv", kernel=(5, 3)))`` lists them with the chain of rules that made each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from egraph_opt.egraph.provenance import DerivedProgram, programs
from egraph_opt.egraph.saturate import Budget, Saturation
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.errors import EgraphOptError, UsageError
from egraph_opt.ir import definitions, library
from egraph_opt.ir import expr as ex
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Buffer, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View
from egraph_opt.packs import Pack, select
from egraph_opt.saturation import Saturator

Option = int | str | Sequence[int]
# What one operator may cost; the tests hold every operator to it.
BUDGET = Budget(enodes=20_000, seconds=10.0)


@dataclass(frozen=True)
class Operator:
    """An operator that can be derived from: its options with their defaults, and its definition."""

    defaults: Mapping[str, Option]
    define: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, str]], Program]


def _program(inputs: Sequence[Source], result: Tensor) -> Program:
    return Program(tuple(inputs), (("y", result),), ("y",))


def _spatial(o: Mapping[str, tuple[int, ...]], name: str, default: int) -> tuple[int, ...]:
    """An option with one value per spatial axis (two per axis for pads)."""
    values = o[name]
    wanted = len(o["kernel"]) * (2 if name == "pads" else 1)
    if not values:
        return (default,) * wanted
    if len(values) != wanted:
        option = name.replace("_", "-")
        raise UsageError(f"--{option} has {len(values)} numbers, a kernel of {len(o['kernel'])} axes needs {wanted}")
    return values


def _windows(o: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    found = {"strides": ("stride", 1), "dilations": ("dilation", 1), "pads": ("pads", 0)}
    return {name: _spatial(o, option, default) for name, (option, default) in found.items()}


def _image(o: Mapping[str, tuple[int, ...]]) -> Source:
    if len(o["size"]) != len(o["kernel"]):
        raise UsageError(f"--size has {len(o['size'])} axes and --kernel {len(o['kernel'])}; give the same number")
    return Source("x", (*o["batch"], o["channels"][0], *o["size"]))


def _channels(o: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    (groups,) = o["groups"]
    if len(o["channels"]) != 2 or any(c % groups for c in o["channels"]):
        raise UsageError(f"--channels must be two numbers that --groups {groups} divides")
    return o["channels"][0], o["channels"][1], groups


def _conv(o: Mapping[str, tuple[int, ...]], _: Mapping[str, str]) -> Program:
    channels, filters, groups = _channels(o)
    x = _image(o)
    w = Source("w", (filters, channels // groups, *o["kernel"]), True)
    return _program((x, w), definitions.convolution(Read(x), Read(w), groups=groups, **_windows(o)))


def _conv_transpose(o: Mapping[str, tuple[int, ...]], _: Mapping[str, str]) -> Program:
    channels, filters, groups = _channels(o)
    x = _image(o)
    w = Source("w", (channels, filters // groups, *o["kernel"]), True)
    extra = _spatial(o, "output_padding", 0)
    term = definitions.transposed_convolution(Read(x), Read(w), output_padding=extra, groups=groups, **_windows(o))
    return _program((x, w), term)


def _matmul(o: Mapping[str, tuple[int, ...]], _: Mapping[str, str]) -> Program:
    if len(o["size"]) != 3:
        raise UsageError("--size of a matmul is three numbers: rows, inner, columns")
    rows, inner, columns = o["size"]
    batch = o["batch"] if o["batch"] != (1,) else ()
    a, b = Source("a", (*batch, rows, inner)), Source("b", (*batch, inner, columns))
    return _program((a, b), definitions.matrix_product(Read(a), Read(b)))


def _band_matmul(o: Mapping[str, tuple[int, ...]], _: Mapping[str, str]) -> Program:
    if len(o["size"]) != 2 or len(o["kernel"]) != 1 or len(o["dilation"]) != 1:
        raise UsageError("a band_matmul has --size SEQUENCE,DEPTH, one --kernel width and one --dilation")
    q, k = (Source(name, (*o["batch"], *o["size"])) for name in "qk")
    term = definitions.band_matrix_product(Read(q), Read(k), width=o["kernel"][0], dilation=o["dilation"][0])
    return _program((q, k), term)


def _pool(o: Mapping[str, tuple[int, ...]], text: Mapping[str, str]) -> Program:
    if text["operation"] not in ("max", "average"):
        raise UsageError(f"--operation must be max or average, not {text['operation']}")
    x = _image(o)
    return _program((x,), definitions.pooling(Read(x), o["kernel"], operation=text["operation"], **_windows(o)))


OPERATORS: Mapping[str, Operator] = {
    "conv": Operator(
        {
            "batch": 1,
            "channels": (6, 10),
            "size": (9, 7),
            "kernel": (3, 3),
            "stride": (),
            "dilation": (),
            "pads": (),
            "groups": 1,
        },
        _conv,
    ),
    "conv_transpose": Operator(
        {
            "batch": 1,
            "channels": (6, 10),
            "size": (9, 7),
            "kernel": (4, 4),
            "stride": (2, 2),
            "dilation": (),
            "pads": (1, 1, 1, 1),
            "output_padding": (),
            "groups": 1,
        },
        _conv_transpose,
    ),
    "matmul": Operator({"batch": 1, "size": (6, 5, 7)}, _matmul),
    "band_matmul": Operator({"batch": 1, "size": (24, 8), "kernel": 5, "dilation": 2}, _band_matmul),
    "pool": Operator(
        {
            "batch": 1,
            "channels": 6,
            "size": (9, 7),
            "kernel": (3, 3),
            "stride": (),
            "dilation": (),
            "pads": (),
            "operation": "max",
        },
        _pool,
    ),
}


@dataclass(frozen=True)
class Found:
    """One program of the operator's class: a library call with kernels around it."""

    derived: DerivedProgram

    @property
    def call(self) -> Call:
        return self.derived.call

    @property
    def operator(self) -> str:
        return self.call.operator

    @cached_property
    def attributes(self) -> Mapping[str, str]:
        return library.parse_attributes(self.call.attributes)

    @cached_property
    def arguments(self) -> tuple[Extents, ...]:
        """Extents of the call's arguments."""
        return tuple(argument.extents for argument in self.call.arguments)

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that made the call, first to last."""
        return self.derived.rules

    @property
    def term(self) -> Tensor:
        """The whole program as a term over the operator's inputs."""
        return self.derived.term

    @cached_property
    def steps(self) -> tuple[Tensor | Buffer, ...]:
        """The sums, views and pointwise functions between the result and the call, outermost first."""
        return tuple(t for t in self.derived.path[:-1] if not isinstance(t, Read | Compute | Reshape))

    @cached_property
    def body(self) -> str:
        """The kernel around the call, the call's result being ``call``."""
        return _shown(self.term, self.call)

    @cached_property
    def is_im2col(self) -> bool:
        """True when an argument repeats elements of an input: windows laid out for the call."""
        return any(_repeats(view) for argument in self.call.arguments for view in _views(argument))

    @cached_property
    def kind(self) -> str:
        """A short name of the program, e.g. ``MatMul + shifted adds``."""
        name = self.operator
        if name == "MatMul" and len(self.call.extents) > 2:
            name = "batched " + name
        if self.operator in ("Conv", "ConvTranspose") and self.attributes.get("group", "1") != "1":
            name = "grouped " + name
        if self.is_im2col:
            name = "im2col " + name
        parts = [name]
        for step in self.steps:
            match step:
                case Reduce("sum", inner, _):
                    parts.append("overlap-add" if any(v.map.guards for v in _above(inner)) else "shifted adds")
                case Reduce(operation, _, _):
                    parts.append(f"{operation} over it")
                case Apply(function, _):
                    parts.append(function)
                case Softmax():
                    parts.append("softmax")
        if len(parts) == 1 and any(not v.map.is_reshape for v in _above(self.term)):
            views = list(_above(self.term))
            inside = all(v.map.is_total for v in views)
            holes = any(v.map.guards for v in views)
            parts.append("permute" if inside else "interleave with zeros" if holes else "zero border")
        return " + ".join(parts)


@dataclass(frozen=True)
class Derivation:
    """The saturated class of one operator; prints as a list of programs."""

    operator: str
    options: Mapping[str, Option]
    program: Program
    snapshot: Snapshot
    saturation: Saturation
    programs: tuple[Found, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def enodes(self) -> int:
        return self.snapshot.size

    def contains(self, wanted: Callable[[Found], bool]) -> bool:
        """True when a program of the class satisfies the predicate."""
        return any(wanted(program) for program in self.programs)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        result = dict(self.program.definitions)["y"]
        shapes = ", ".join(f"{s.name} {list(s.extents)}" for s in self.program.inputs)
        yield f"{self.operator}: {shapes} -> {list(result.extents)}"
        stop = "" if self.saturation.stop == "saturated" else f", stopped by its limit of {self.saturation.stop}"
        yield from (f"note: {note}" for note in self.notes)
        count = f"{len(self.programs)} ways to compute it with library calls"
        yield f"{self.enodes:,} e-nodes in {self.seconds:.2f} s{stop}; {count}"
        groups: dict[str, list[Found]] = {}
        for found in self.programs:
            groups.setdefault(found.kind, []).append(found)
        for kind in sorted(groups, key=lambda kind: (kind.count("+"), kind)):
            yield ""
            yield f"{kind} ({len(groups[kind])})"
            shown: set[tuple[object, ...]] = set()
            for found in sorted(groups[kind], key=lambda f: (len(f.rules), sum(map(prod, f.arguments)))):
                key = (found.operator, found.call.attributes, tuple(sorted(found.arguments)))
                if key in shown:
                    continue
                shown.add(key)
                arguments = ", ".join(str(list(extents)) for extents in found.arguments)
                attributes = f" {found.call.attributes.replace(';', ' ')}" if found.call.attributes else ""
                yield f"  {found.operator}({arguments}) -> {list(found.call.extents)}{attributes}"
                yield f"    result = {found.body}"
                yield f"    rules: {' > '.join(found.rules) or 'none'}"


def _shown(term: Tensor | Buffer, call: Call) -> str:
    """Text of the kernel around ``call``."""
    if term == call:
        return "call"
    match term:
        case Read(inner) | Compute(inner):
            return _shown(inner, call)
        case Source(name):
            return name
        case Reshape(inner, extents):
            return f"({_shown(inner, call)} as {list(extents)})"
        case View(inner, index):
            where = f" where {', '.join(g.text for g in index.guards)} = 0" if index.guards else ""
            return f"{_shown(inner, call)}[{', '.join(e.text for e in index.indices)}{where}]"
        case Reduce(operation, inner, count):
            rank = len(inner.extents)
            over = ", ".join(f"i{i} < {inner.extents[i]}" for i in range(rank - count, rank))
            return f"{operation} over {over} of {_shown(inner, call)}"
        case Softmax(inner, _):
            return f"softmax({_shown(inner, call)})"
        case Fill(value, _):
            return str(value)
        case Apply(function, arguments):
            return f"{function}({', '.join(_shown(a, call) for a in arguments)})"
        case Call(operator, _, arguments, _):
            return f"{operator}({', '.join(_shown(a, call) for a in arguments)})"


def _views(term: Tensor | Buffer) -> Iterator[IndexMap]:
    match term:
        case View(tensor, index):
            yield index
            yield from _views(tensor)
        case Read(inner) | Compute(inner) | Reshape(inner, _):
            yield from _views(inner)


def _above(term: Tensor | Buffer) -> Iterator[View]:
    """The views between a term and the next sum, function or buffer."""
    while isinstance(term, View):
        yield term
        term = term.tensor


def _repeats(index: IndexMap) -> bool:
    """True when the map reads one position of an axis at several index points that differ in that axis's iterators
    only."""
    return any(e.is_affine and not ex.is_injective(e, index.result) for e in index.indices)


def operator_program(operator: str, **options: Option) -> Program:
    """The plain definition of an operator. Raises UsageError like :func:`derive_operator`."""
    if operator not in OPERATORS:
        raise UsageError(f"unknown operator {operator}; known: {', '.join(OPERATORS)}")
    chosen = OPERATORS[operator]
    for name in options:
        if name not in chosen.defaults:
            raise UsageError(f"{operator} has no option {name}; its options: {', '.join(chosen.defaults)}")
    merged = {**chosen.defaults, **options}
    numbers = {n: (v,) if isinstance(v, int) else tuple(v) for n, v in merged.items() if not isinstance(v, str)}
    texts = {n: v for n, v in merged.items() if isinstance(v, str)}
    for name, values in numbers.items():
        smallest = 0 if name in ("pads", "output_padding") else 1
        if any(v < smallest for v in values):
            raise UsageError(f"--{name.replace('_', '-')} must be at least {smallest} everywhere")
    try:
        return chosen.define(numbers, texts)
    except UsageError:
        raise
    except EgraphOptError as error:
        raise UsageError(str(error)) from error


def derive_operator(
    operator: str, *, rules: str | Sequence[str | Pack] = "", fp: str = "default", **options: Option
) -> Derivation:
    """Saturate one operator of :data:`OPERATORS` and list the programs that its class contains.

    Options are whole numbers or sequences of them (``operation`` of a pool is a text); the defaults are in
    ``OPERATORS``. ``rules`` and ``fp`` choose the rules, see ``egraph_opt.packs.select``. Raises UsageError for an
    unknown operator or option, or sizes that do not fit together.
    """
    program = operator_program(operator, **options)
    merged = {**OPERATORS[operator].defaults, **options}
    started = time.monotonic()
    with Saturator(select(rules, fp)) as saturator:
        saturated = saturator.saturate(program, BUDGET)
    seconds = time.monotonic() - started
    snapshot = saturated.snapshot
    found = tuple(
        Found(derived) for derived in programs(snapshot, program, "y") if derived.call.operator != "Transpose"
    )
    return Derivation(operator, merged, program, snapshot, saturated.saturation, found, seconds, tuple(saturator.notes))
