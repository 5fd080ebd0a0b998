"""Siblings, sums of contractions and re-association: every e-node is right, and the joint program is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.saturate import Budget, saturate
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import judge
from egraph_opt.ir import definitions, maps
from egraph_opt.ir import expr as ex
from egraph_opt.ir.library import parse_attributes
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Read, Source, Tensor, View, add
from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION
from tests.rules import operators


def _program(terms: Mapping[str, Tensor], sources: Sequence[Source], outputs: Sequence[str] = ()) -> Program:
    return Program(tuple(sources), tuple(terms.items()), tuple(outputs or terms))


def _named(name: str, term: Tensor) -> Read:
    return Read(Source(name, term.extents))


def _saturated(program: Program) -> tuple[Snapshot, Mapping[str, int]]:
    egraph = EGraph()
    egraph.add_program(program)
    done = saturate(egraph, PHASES, SIMPLIFICATION, budget=Budget(enodes=40_000, seconds=600.0))
    assert done.stop == "saturated"
    snapshot = Snapshot(egraph)
    verdict = judge(snapshot, operators.values(program))
    assert not verdict.mismatches, (program, verdict.mismatches[0])
    assert verdict.checked
    return snapshot, done.matches


def _calls(snapshot: Snapshot, operator: str) -> list[tuple[Mapping[str, str], tuple[int, ...]]]:
    """Attributes and result extents of the calls of a library operator."""
    return [
        (parse_attributes(str(node.arguments[1])), tuple(int(n) for n in str(node.arguments[3]).split(",")))
        for nodes in snapshot.classes.values()
        for node in nodes
        if node.constructor == "Call" and node.arguments[0] == operator
    ]


@st.composite
def convolutions_of_one_input(draw: st.DrawFn) -> Program:
    """Two to four convolutions of one image: strides, dilations, pads, groups and kernels may differ."""
    rank = draw(st.sampled_from([1, 1, 2]))
    groups = draw(st.sampled_from([1, 1, 2]))
    per_group = draw(st.integers(1, 2))
    size = [draw(st.integers(4, 6)) for _ in range(rank)]
    x = Source("x", (draw(st.integers(1, 2)), per_group * groups, *size))
    same = draw(st.booleans())
    strides = [draw(st.integers(1, 2)) for _ in range(rank)]
    terms: dict[str, Tensor] = {}
    sources = [x]
    for i in range(draw(st.integers(2, 4))):
        own = groups if same else draw(st.sampled_from([1, groups]))
        kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
        dilations = [draw(st.sampled_from([1, 1, 2])) for _ in range(rank)]
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        before = [draw(st.integers(max(0, r - n + 1), r)) for r, n in zip(reach, size, strict=True)]
        after = [max(0, r - b) for r, b in zip(reach, before, strict=True)]
        w = Source(f"w{i}", (own * draw(st.integers(1, 2)), per_group * groups // own, *kernel), True)
        sources.append(w)
        terms[f"y{i}"] = definitions.convolution(
            Read(x), Read(w), strides=strides, dilations=dilations, pads=[*before, *after], groups=own
        )
    return _program(terms, sources)


@st.composite
def products_of_one_input(draw: st.DrawFn) -> Program:
    """Matrix products of one tensor with several others, from either side, some with batch axes."""
    rows, inner = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    batch = draw(st.sampled_from([(), (2,)]))
    x = Source("x", (*batch, rows, inner))
    terms: dict[str, Tensor] = {}
    sources = [x]
    for i in range(draw(st.integers(2, 4))):
        from_left = draw(st.booleans())
        columns = draw(st.integers(1, 4))
        shape = (columns, rows) if from_left else (inner, columns)
        own = Source(f"w{i}", (*draw(st.sampled_from([(), batch])), *shape), draw(st.booleans()))
        sources.append(own)
        operands = (Read(own), Read(x)) if from_left else (Read(x), Read(own))
        terms[f"y{i}"] = definitions.matrix_product(*operands)
    return _program(terms, sources)


@st.composite
def sums_of_convolutions(draw: st.DrawFn) -> Program:
    """The sum of two or three convolutions, with one input or one weight, with and without biases."""
    one_weight = draw(st.booleans())
    groups, filters = draw(st.sampled_from([1, 2])), draw(st.integers(1, 2))
    extents = (1, groups, 6)
    kernels = [draw(st.sampled_from([1, 3, 3, 5])) for _ in range(draw(st.integers(2, 3)))]
    if one_weight:
        kernels = kernels[:1] * len(kernels)
    sources: dict[str, Source] = {}
    total: Tensor | None = None
    for i, kernel in enumerate(kernels):
        x = sources.setdefault(f"x{i if one_weight else 0}", Source(f"x{i if one_weight else 0}", extents))
        name = "w" if one_weight else f"w{i}"
        w = sources.setdefault(name, Source(name, (groups * filters, 1, kernel), True))
        pad = kernel // 2
        found: Tensor = definitions.convolution(
            Read(x), Read(w), strides=(1,), dilations=(1,), pads=(pad, pad), groups=groups
        )
        if draw(st.booleans()):
            bias = sources.setdefault(f"b{i}", Source(f"b{i}", (groups * filters,), True))
            found = add(found, View(Read(bias), maps.index_map(bias.extents, found.extents, [ex.iterator(1)])))
        total = found if total is None else add(total, found)
    assert total is not None
    return _program({"y": total}, list(sources.values()))


@st.composite
def products_of_three(draw: st.DrawFn) -> Program:
    """A matrix product of a matrix product, from either side; or one convolution after another."""
    if draw(st.booleans()):
        a, b, c, d = (draw(st.integers(1, 7)) for _ in range(4))
        one, two, three = Source("a", (a, b)), Source("b", (b, c), draw(st.booleans())), Source("c", (c, d), True)
        if draw(st.booleans()):
            product = definitions.matrix_product(definitions.matrix_product(Read(one), Read(two)), Read(three))
        else:
            product = definitions.matrix_product(Read(one), definitions.matrix_product(Read(two), Read(three)))
        return _program({"y": product}, (one, two, three))
    rank = draw(st.sampled_from([1, 1, 2]))
    term: Tensor = Read(Source("x", (1, draw(st.integers(1, 2)), *[draw(st.integers(5, 8))] * rank)))
    sources = [Source("x", term.extents)]
    for i in range(2):
        groups = draw(st.sampled_from([1, 1, term.extents[1]]))
        kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
        pads = [draw(st.sampled_from([0, 0, 1])) for _ in range(2 * rank)]
        w = Source(f"w{i}", (groups * draw(st.integers(1, 3)), term.extents[1] // groups, *kernel), True)
        sources.append(w)
        strides = [draw(st.integers(1, 2)) for _ in range(rank)]
        dilations = [draw(st.integers(1, 2)) if size > 4 else 1 for size in term.extents[2:]]
        if any(d * (k - 1) + 1 > n for d, k, n in zip(dilations, kernel, term.extents[2:], strict=True)):
            kernel = [1] * rank
            w = sources[-1] = Source(f"w{i}", (*w.extents[:2], *kernel), True)
        term = definitions.convolution(term, Read(w), strides=strides, dilations=dilations, pads=pads, groups=groups)
    return _program({"y": term}, sources)


STRATEGIES = {
    "convolutions of one input": (convolutions_of_one_input(), 40),
    "products of one input": (products_of_one_input(), 40),
    "sums of convolutions": (sums_of_convolutions(), 40),
    "products of three": (products_of_three(), 60),
}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_enode_equals_its_class(kind: str) -> None:
    strategy, examples = STRATEGIES[kind]

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(program: Program) -> None:
        _saturated(program)

    check()


def _convolution(x: Tensor, w: Source, pads: Sequence[int], groups: int = 1, stride: int = 1) -> Tensor:
    axes = len(w.extents) - 2
    return definitions.convolution(
        x, Read(w), strides=(stride,) * axes, dilations=(1,) * axes, pads=pads, groups=groups
    )


X = Source("x", (1, 4, 6, 6))


def test_queries_keys_and_values_are_one_product() -> None:
    x = Source("x", (5, 8))
    weights = [Source(f"w{i}", (8, columns), True) for i, columns in enumerate((6, 6, 3))]
    terms = {f"y{i}": definitions.matrix_product(Read(x), Read(w)) for i, w in enumerate(weights)}
    snapshot, matches = _saturated(_program(terms, (x, *weights)))
    assert matches["siblings"] == 1
    assert any(prod(extents) == 5 * (6 + 6 + 3) for _, extents in _calls(snapshot, "MatMul"))


def test_branches_with_different_windows_are_one_convolution_and_pairs_are_not_made() -> None:
    """Three branches at once, the 1x1 kernels enlarged; the two of equal windows also without enlarging."""
    weights = [Source("a", (8, 4, 3, 3), True), Source("b", (7, 4, 3, 3), True), Source("c", (2, 4, 1, 1), True)]
    pads = [(1, 1, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)]
    terms = {w.name: _convolution(Read(X), w, p) for w, p in zip(weights, pads, strict=True)}
    snapshot, _ = _saturated(_program(terms, (X, *weights)))
    filters = {extents[1] for _, extents in _calls(snapshot, "Conv") if len(extents) == 4}
    assert {8, 7, 2, 8 + 7, 8 + 7 + 2} <= filters
    assert not {8 + 2, 7 + 2} & filters


def test_a_kernel_is_not_enlarged_at_any_price() -> None:
    weights = [Source("a", (2, 4, 5, 5), True), Source("b", (20, 4, 1, 1), True)]
    pads = [(2, 2, 2, 2), (0, 0, 0, 0)]
    terms = {w.name: _convolution(Read(X), w, p) for w, p in zip(weights, pads, strict=True)}
    snapshot, _ = _saturated(_program(terms, (X, *weights)))
    assert all(extents[1] != 22 for _, extents in _calls(snapshot, "Conv"))


def test_grouped_siblings_stay_grouped() -> None:
    """TASO's axiom puts the filters of all groups side by side, which mixes up the groups."""
    weights = [Source("a", (4, 2, 3, 3), True), Source("b", (6, 2, 3, 3), True)]
    terms = {w.name: _convolution(Read(X), w, (1, 1, 1, 1), groups=2) for w in weights}
    snapshot, _ = _saturated(_program(terms, (X, *weights)))
    assert any(a.get("group") == "2" and e[1] == 10 for a, e in _calls(snapshot, "Conv") if len(e) == 4)


def test_separable_branches_share_their_product() -> None:
    """A column and a row of taps: one product of all pixels with the taps of both (GCN)."""
    weights = [Source("a", (3, 4, 5, 1), True), Source("b", (3, 4, 1, 5), True)]
    pads = [(2, 0, 2, 0), (0, 2, 0, 2)]
    terms = {w.name: _convolution(Read(X), w, p) for w, p in zip(weights, pads, strict=True)}
    snapshot, _ = _saturated(_program(terms, (X, *weights)))
    assert any(prod(extents) == 36 * (3 * 5 + 3 * 5) for _, extents in _calls(snapshot, "MatMul"))


@pytest.mark.parametrize("biased", [False, True])
def test_a_sum_of_convolutions_is_one_convolution(biased: bool) -> None:
    """A 3x3 and a 1x1 kernel over one input: one 3x3 kernel."""
    weights = [Source("a", (5, 4, 3, 3), True), Source("b", (5, 4, 1, 1), True)]
    parts: list[Tensor] = []
    sources = [X, *weights]
    for w, pads in zip(weights, [(1, 1, 1, 1), (0, 0, 0, 0)], strict=True):
        part = _convolution(Read(X), w, pads)
        if biased:
            bias = Source(f"bias of {w.name}", (5,), True)
            sources.append(bias)
            part = add(part, View(Read(bias), maps.index_map((5,), part.extents, [ex.iterator(1)])))
        parts.append(part)
    snapshot, matches = _saturated(_program({"y": add(*parts)}, sources))
    assert matches["sum-of-one-input-biases" if biased else "sum-of-one-input"] == 1
    assert _folds_to_one_call(snapshot, "Conv")


def _folds_to_one_call(snapshot: Snapshot, operator: str) -> bool:
    """Whether some call of this operator reads x and a weight only, and is the result up to views and pointwise
    functions."""
    calls = {
        owner
        for owner, nodes in snapshot.classes.items()
        for node in nodes
        if node.constructor == "Call" and node.arguments[0] == operator
    }
    reached: set[int] = set()
    pending = [snapshot.names["y"]]
    while pending:
        owner = pending.pop()
        if owner in reached:
            continue
        reached.add(owner)
        for node in snapshot.classes[owner]:
            if node.constructor in ("View", "Read", "Reshape"):
                pending += node.children
            if node.constructor == "Add":
                pending.append(node.children[0])
    return bool(reached & calls)


def test_a_sum_with_one_weight_is_one_convolution() -> None:
    x, z, w = X, Source("z", X.extents), Source("w", (5, 4, 3, 3), True)
    total = add(_convolution(Read(x), w, (1, 1, 1, 1)), _convolution(Read(z), w, (1, 1, 1, 1)))
    snapshot, matches = _saturated(_program({"y": total}, (x, z, w)))
    assert matches["sum-of-one-weight"] == 1
    assert _folds_to_one_call(snapshot, "Conv")


def _association(matches: Mapping[str, int]) -> int:
    return sum(number for name, number in matches.items() if name.startswith("associates"))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_a_convolution_is_one(stride: int) -> None:
    """One channel, 24 between, two at the end: one 5x5 kernel has fewer operations than two 3x3 ones."""
    x = Source("x", (1, 1, 12, 12))
    inner, outer = Source("v", (24, 1, 3, 3), True), Source("w", (2, 24, 3, 3), True)
    term = _convolution(_convolution(Read(x), inner, (0,) * 4, stride=stride), outer, (0,) * 4)
    snapshot, matches = _saturated(_program({"y": term}, (x, inner, outer)))
    assert _association(matches)
    assert any(e[1] == 2 and a["strides"] == f"{stride},{stride}" for a, e in _calls(snapshot, "Conv") if len(e) == 4)
    assert _folds_to_one_call(snapshot, "Conv")


def test_a_padded_convolution_of_a_convolution_stays() -> None:
    """The border of the second is not what the first would give beyond its result."""
    x, inner, outer = Source("x", (1, 1, 9)), Source("v", (9, 1, 3), True), Source("w", (1, 9, 3), True)
    term = _convolution(_convolution(Read(x), inner, (0, 0)), outer, (1, 1))
    snapshot, _ = _saturated(_program({"y": term}, (x, inner, outer)))
    assert not any(e[-1] == 9 and e[1] == 1 and a["pads"] == "1,1" for a, e in _calls(snapshot, "Conv") if len(e) == 3)


Chain = Callable[[Tensor, Tensor, Tensor], Tensor]
CHAINS: dict[str, Chain] = {
    "left": lambda a, b, c: definitions.matrix_product(definitions.matrix_product(a, b), c),
    "right": lambda a, b, c: definitions.matrix_product(a, definitions.matrix_product(b, c)),
}


@pytest.mark.parametrize(
    ("written", "extents", "changes"),
    [
        ("left", (6, 2, 6, 2), True),
        ("left", (2, 6, 2, 6), False),
        ("right", (2, 6, 2, 6), True),
        ("right", (6, 2, 6, 2), False),
    ],
)
def test_products_associate_where_that_takes_fewer_operations(
    written: str, extents: tuple[int, ...], changes: bool
) -> None:
    a, b, c, d = extents
    sources = Source("a", (a, b)), Source("b", (b, c)), Source("c", (c, d))
    term = CHAINS[written](*(Read(source) for source in sources))
    _, matches = _saturated(_program({"y": term}, sources))
    assert (_association(matches) > 0) == changes


def test_a_function_between_two_products_keeps_them_apart() -> None:
    sources = Source("a", (6, 2)), Source("b", (2, 6)), Source("c", (6, 2))
    inner = Apply("relu", (definitions.matrix_product(Read(sources[0]), Read(sources[1])),))
    _, matches = _saturated(_program({"y": definitions.matrix_product(inner, Read(sources[2]))}, sources))
    assert not _association(matches)


def test_a_long_sum_of_products_of_one_input_is_one_product() -> None:
    x = Source("x", (2, 3))
    weights = [Source(f"w{i}", (3, 4), True) for i in range(9)]
    total: Tensor | None = None
    for w in weights:
        product = definitions.matrix_product(Read(x), Read(w))
        total = product if total is None else add(total, product)
    assert total is not None
    snapshot, _ = _saturated(_program({"y": total}, (x, *weights)))
    assert _folds_to_one_call(snapshot, "MatMul") or _folds_to_one_call(snapshot, "Gemm")
    inner = {
        owner
        for owner, nodes in snapshot.classes.items()
        for node in nodes
        if node.constructor == "Sum" and snapshot.extents[owner] == (2, 4)
    }
    assert snapshot.names["y"] in inner
