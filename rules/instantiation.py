"""Operator matching: algebra on the left, a library call on the right (EINNET section 4.3, by iterator groups)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from egraph_opt.egraph.language import (
    ArgsVar,
    BufferVar,
    Each,
    ExtentsVar,
    IntVar,
    MapVar,
    Node,
    Pattern,
    Rule,
    TensorVar,
    TextVar,
    apply,
    becomes,
    call,
    each,
    fill,
    rule_group,
)
from egraph_opt.ir import library, matching, matching_convolution, matching_reduction, view_algebra
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap

Fields = tuple[str, str, IndexMap, Extents, IndexMap, Extents, Extents, Extents, IndexMap]


def _matches(
    matcher: Callable[[IndexMap, IndexMap, int], list[matching.Match]], swapped: bool
) -> Callable[..., list[Fields]]:
    """The matches of one argument order as fields of a rule, first argument first."""

    def find(left: IndexMap, right: IndexMap, count: int) -> list[Fields]:
        return [
            (m.operator, m.attributes, m.left, m.left_shape, m.right, m.right_shape, m.result, m.shape, m.view)
            for m in matcher(left, right, count)
            if m.swapped == swapped
        ]

    return find


def _called(first: Pattern, second: Pattern, f: Each) -> Node:
    arguments = [
        first.view(f.map(2)).compute().reshape(f.extents(3)),
        second.view(f.map(4)).compute().reshape(f.extents(5)),
    ]
    return call(f.text(0), f.text(1), arguments, f.extents(6)).reshape(f.extents(7)).read().view(f.map(8))


@rule_group("instantiation")
def instantiation(x: TensorVar, w: TensorVar, m: MapVar, n: MapVar, k: IntVar, operation: TextVar) -> Iterator[Rule]:
    """Contractions and reductions as library operators."""
    product = (x.view(m) * w.view(n)).sum(k)
    matchers: tuple[tuple[str, Callable[[Any, Any, int], list[matching.Match]]], ...] = (
        ("matmul", matching.matrix_products),
        ("conv", matching_convolution.convolutions),
        ("conv-transpose", matching_convolution.transposed_convolutions),
    )
    for name, matcher in matchers:
        yield becomes(name, product, _called(x, w, each(_matches(matcher, False), m, n, k)), exactness="reassociates")
        yield becomes(
            f"{name}-swapped", product, _called(w, x, each(_matches(matcher, True), m, n, k)), exactness="reassociates"
        )
    r = each(matching_reduction.reductions, operation, m, k)
    reduced = call(r.text(0), r.text(1), [x.view(r.map(2)).compute().reshape(r.extents(3))], r.extents(4))
    yield becomes("reduction", x.view(m).reduce(operation, k), reduced.reshape(r.extents(5)).read().view(r.map(6)))
    s = each(matching_reduction.sums, m, k)
    summed = call(s.text(0), s.text(1), [x.view(s.map(2)).compute().reshape(s.extents(3))], s.extents(4))
    yield becomes(
        "sum-reduction", x.view(m).sum(k), summed.reshape(s.extents(5)).read().view(s.map(6)), exactness="reassociates"
    )


@rule_group("pooling")
def pooling(x: TensorVar, m: MapVar, k: IntVar, factor: TextVar, e: ExtentsVar) -> Iterator[Rule]:
    """Sums of windows times a constant as average pooling."""
    a = each(matching_reduction.averages, m, k, factor)
    pooled = call(a.text(0), a.text(1), [x.view(a.map(2)).compute().reshape(a.extents(3))], a.extents(4))
    average = pooled.reshape(a.extents(5)).read().view(a.map(6))
    yield becomes("average-pool", x.view(m).sum(k) * fill(factor, e), average, exactness="reassociates")


@rule_group("epilogue")
def epilogue(
    a: BufferVar,
    b: BufferVar,
    y: TensorVar,
    args: ArgsVar,
    op: TextVar,
    attributes: TextVar,
    f: TextVar,
    e: ExtentsVar,
    s: ExtentsVar,
    m: MapVar,
    n: MapVar,
) -> Iterator[Rule]:
    """Bias and activation inside the library call that produces their argument."""
    produced = call(op, attributes, [a, b], e).reshape(s).read().view(m)
    z = each(view_algebra.bias, op, attributes, e, s, m, n)
    biased = call(z.text(0), z.text(1), [a, b, y.view(z.map(2)).compute()], e).reshape(s).read().view(m)
    yield becomes("bias", produced + y.view(n), biased, exactness="reassociates")
    yield becomes("bias-left", y.view(n) + produced, biased, exactness="reassociates")
    t = each(view_algebra.epilogue, op, attributes, m, f)
    yield becomes(
        "fused-activation",
        apply(f, call(op, attributes, args, e).reshape(s).read().view(m)),
        call(op, t.text(0), args, e).reshape(s).read().view(m),
    )


@rule_group("layout")
def layout(b: BufferVar, m: MapVar) -> Iterator[Rule]:
    """Copies that library operators can make."""
    t = each(view_algebra.transposition, m)
    yield becomes("transpose", b.read().view(m).compute(), call("Transpose", t.text(0), [b], t.extents(1)))


@rule_group("transposed_operands")
def transposed_operands(a: BufferVar, b: BufferVar, e: ExtentsVar, s: ExtentsVar) -> Iterator[Rule]:
    """A matrix that has to be transposed first can be handed to Gemm as it is."""
    turned = library.format_attributes(perm=(1, 0))
    left = call("MatMul", "", [call("Transpose", turned, [a], s), b], e)
    right = call("MatMul", "", [a, call("Transpose", turned, [b], s)], e)
    for name, side, attribute in (("left", left, "transA"), ("right", right, "transB")):
        gemm = call("Gemm", library.format_attributes(**{attribute: 1}), [a, b], e)
        yield becomes(f"gemm-{name}-transposed", side, gemm, exactness="reassociates")
