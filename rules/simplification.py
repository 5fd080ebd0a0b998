"""Simplifications: run to saturation between rounds; none of them makes a term larger."""

from __future__ import annotations

from collections.abc import Iterator

from egraph_opt.egraph.language import (
    ArgsVar,
    BufferVar,
    ExtentsVar,
    MapVar,
    Rule,
    TensorVar,
    TextVar,
    becomes,
    call,
    cancels,
    each,
    fill,
    rule_group,
)
from egraph_opt.ir import view_algebra as by


@rule_group("simplification")
def simplification(
    x: TensorVar,
    y: TensorVar,
    b: BufferVar,
    m: MapVar,
    n: MapVar,
    args: ArgsVar,
    op: TextVar,
    attributes: TextVar,
    value: TextVar,
    e: ExtentsVar,
    s: ExtentsVar,
) -> Iterator[Rule]:
    """Views compose, the identity view is nothing, and memory that is right already stays."""
    composed = each(by.composed, n, m)
    yield becomes("view-of-view", x.view(m).view(n), x.view(composed.map(0)))
    yield becomes("identity-view", x.view(m), x, given=[each(by.is_identity, m)])
    yield cancels("bijection-cancels", x.view(m), y.view(m), (x, y), given=[each(by.is_bijective, m)])
    yield becomes("view-of-constant", fill(value, e).view(m), fill(value, each(by.constant_view, m).extents(0)))
    yield becomes("read-of-compute", x.compute().read(), x)
    yield becomes("compute-of-read", b.read().compute(), b)
    yield becomes("reshape-of-reshape", b.reshape(e).reshape(s), b.reshape(s))
    yield becomes("reshape-to-itself", call(op, attributes, args, e).reshape(e), call(op, attributes, args, e))
    same = each(by.same_memory, m)
    yield becomes("view-is-reshape", b.read().view(m).compute(), b.reshape(same.extents(0)))
