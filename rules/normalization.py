"""Normalizations, written out in pieces by exporters or by the frontends, as the operators that do all at once."""

from __future__ import annotations

from collections.abc import Iterator

from egraph_opt.egraph.language import (
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
from egraph_opt.ir import matching_normalization as by


def _deviation(square: Pattern, epsilon: Pattern, e: Pattern, b: Pattern) -> Node:
    return apply("sqrt", square + fill(epsilon, e)).view(b)


@rule_group("normalization")
def normalization(
    x: TensorVar,
    scale: TensorVar,
    bias: TensorVar,
    m: MapVar,
    b: MapVar,
    s: MapVar,
    t: MapVar,
    k: IntVar,
    factor: TextVar,
    epsilon: TextVar,
    beta: TextVar,
    e: ExtentsVar,
) -> Iterator[Rule]:
    """Mean and variance, then a scale and a shift (Ba et al. 2016; Ulyanov et al. 2016; Zhang and Sennrich 2019)."""
    mean = x.view(m).sum(k) * fill(factor, e)
    centered = apply("sub", x, mean.view(b))
    variance = (centered * centered).view(m).sum(k) * fill(factor, e)
    plain = apply("div", centered, _deviation(variance, epsilon, e, b))
    given = (m, k, factor, b, epsilon)

    c = each(by.layer_shifted, *given, s, t)
    operands = [x.view(c.map(1)).compute(), scale.view(c.map(3)).compute(), bias.view(c.map(4)).compute()]
    yield becomes(
        "layer-normalization",
        plain * scale.view(s) + bias.view(t),
        call("LayerNormalization", c.text(0), operands, c.extents(2)).read().view(c.map(5)),
        exactness="reassociates",
    )
    c = each(by.layer_scaled, *given, s)
    operands = [x.view(c.map(1)).compute(), scale.view(c.map(3)).compute()]
    yield becomes(
        "layer-normalization-unshifted",
        plain * scale.view(s),
        call("LayerNormalization", c.text(0), operands, c.extents(2)).read().view(c.map(4)),
        exactness="reassociates",
    )
    c = each(by.layer, *given)
    operands = [x.view(c.map(1)).compute(), fill(1, c.extents(3)).compute()]
    yield becomes(
        "standardization",
        plain,
        call("LayerNormalization", c.text(0), operands, c.extents(2)).read().view(c.map(4)),
        exactness="reassociates",
    )
    c = each(by.rows, *given)
    operands = [
        x.view(c.map(1)).compute().reshape(c.extents(2)),
        fill(1, c.extents(3)).compute(),
        fill(0, c.extents(3)).compute(),
    ]
    yield becomes(
        "standardization-of-rows",
        plain,
        call("InstanceNormalization", c.text(0), operands, c.extents(2)).reshape(c.extents(4)).read().view(c.map(5)),
        exactness="reassociates",
    )
    c = each(by.instance, *given, s, t)
    operands = [
        x.view(c.map(1)).compute().reshape(c.extents(2)),
        scale.view(c.map(3)).compute().reshape(c.extents(5)),
        bias.view(c.map(4)).compute().reshape(c.extents(5)),
    ]
    yield becomes(
        "instance-normalization",
        plain * scale.view(s) + bias.view(t),
        call("InstanceNormalization", c.text(0), operands, c.extents(2)).reshape(c.extents(6)).read().view(c.map(7)),
        exactness="reassociates",
    )

    square = (x * x).view(m).sum(k) * fill(factor, e)
    c = each(by.layer_scaled, *given, s)
    operands = [x.view(c.map(1)).compute(), scale.view(c.map(3)).compute()]
    scaled = call("RMSNormalization", c.text(0), operands, c.extents(2)).read().view(c.map(4))
    divided = apply("div", x, _deviation(square, epsilon, e, b))
    for name, left in (
        ("rms-normalization", divided * scale.view(s)),
        ("rms-normalization-scale-first", scale.view(s) * divided),
    ):
        yield becomes(name, left, scaled, exactness="reassociates")

    window = (x * x).view(m).sum(1) * fill(factor, e)
    c = each(by.local_response, m, factor, epsilon, beta)
    yield becomes(
        "local-response-normalization",
        apply("div", x, apply("pow", window + fill(epsilon, e), fill(beta, e))),
        call("LRN", c.text(0), [x.compute()], e).read(),
        exactness="reassociates",
    )
