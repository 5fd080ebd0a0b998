"""Views leave pointwise functions: a layout change made by one operator meets the one the next operator wants and cancels."""

from __future__ import annotations

from collections.abc import Iterator

from egraph_opt.egraph.language import IntVar, MapVar, Rule, TensorVar, TextVar, apply, each, equal, rule_group
from egraph_opt.ir import view_algebra as by


@rule_group("pointwise")
def pointwise(x: TensorVar, y: TensorVar, f: TextVar, m: MapVar, k: IntVar) -> Iterator[Rule]:
    """Only bijective views move, so the number of layouts of a value stays that of its producers."""
    bijective = [each(by.is_bijective, m)]
    back = each(by.inverted, m)
    yield equal("view-leaves-function", apply(f, x.view(m)), apply(f, x).view(m), given=bijective)
    yield equal("view-leaves-sum", x.view(m) + y, (x + y.view(back.map(0))).view(m))
    yield equal("view-leaves-sum-right", y + x.view(m), (y.view(back.map(0)) + x).view(m))
    yield equal("view-leaves-product", x.view(m) * y, (x * y.view(back.map(0))).view(m))
    yield equal("view-leaves-product-right", y * x.view(m), (y.view(back.map(0)) * x).view(m))
    yield equal("view-leaves-binary", apply(f, x.view(m), y), apply(f, x, y.view(back.map(0))).view(m))
    yield equal("view-leaves-binary-right", apply(f, y, x.view(m)), apply(f, y.view(back.map(0)), x).view(m))
    yield equal("view-leaves-softmax", x.view(m).softmax(k), x.softmax(k).view(m), given=[each(by.keeps_last, m, k)])
