"""Views leave pointwise functions: a layout change made by one operator meets the one the next operator wants and
cancels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from egraph_opt.egraph.language import (
    Each,
    IntVar,
    MapVar,
    Node,
    Rule,
    TensorVar,
    TextVar,
    apply,
    becomes,
    each,
    rule_group,
)
from egraph_opt.ir import view_algebra as by


@rule_group("pointwise")
def pointwise(x: TensorVar, y: TensorVar, f: TextVar, m: MapVar, k: IntVar) -> Iterator[Rule]:
    """Only bijective views move, and only through functions of the program itself: as many layouts as its producers
    have."""

    def leaves(name: str, left: Node, right: Node, *, given: Sequence[Each] = ()) -> Rule:
        return becomes(f"view-leaves-{name}", left, right, given=given, original=True)

    back = each(by.inverted, m)
    yield leaves("function", apply(f, x.view(m)), apply(f, x).view(m), given=[each(by.is_bijective, m)])
    yield leaves("sum", x.view(m) + y, (x + y.view(back.map(0))).view(m))
    yield leaves("sum-right", y + x.view(m), (y.view(back.map(0)) + x).view(m))
    yield leaves("product", x.view(m) * y, (x * y.view(back.map(0))).view(m))
    yield leaves("product-right", y * x.view(m), (y.view(back.map(0)) * x).view(m))
    yield leaves("binary", apply(f, x.view(m), y), apply(f, x, y.view(back.map(0))).view(m))
    yield leaves("binary-right", apply(f, y, x.view(m)), apply(f, y.view(back.map(0)), x).view(m))
    yield leaves("softmax", x.view(m).softmax(k), x.softmax(k).view(m), given=[each(by.keeps_last, m, k)])
