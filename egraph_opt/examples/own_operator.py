"""An operator that onnxruntime has and the built-in rules do not know: com.microsoft.FusedMatMul.

It transposes, multiplies and scales in one call, so attention scores, ``q @ transpose(k) / 8``, become one node."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from egraph_opt.algebra import evaluate, tensor
from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.egraph import language as rules
from egraph_opt.egraph.language import BufferVar, becomes, call, rule_group
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.extensions import extended
from egraph_opt.ir.library import LibraryOperator, OnnxOperator, format_attributes, parse_attributes
from egraph_opt.ir.maps import IndexMap
from egraph_opt.packs import Pack
from egraph_opt.scripting import EGraph


def shape(a: Extents, b: Extents, *, alpha: float = 1.0, transB: int = 0) -> Extents:  # noqa: N803
    return (*a[:-1], b[-2] if transB else b[-1])


def meaning(a: Any, b: Any, *, arithmetic: Any, alpha: float = 1.0, transB: int = 0) -> Any:  # noqa: N803
    product = arithmetic.reduce_product(a, np.swapaxes(b, -1, -2) if transB else b)
    return arithmetic.apply("mul", product, arithmetic.fill(Fraction(alpha), product.shape))


FUSED = LibraryOperator(
    "FusedMatMul",
    arity=2,
    attributes={"alpha": "float", "transB": "int"},
    shape=shape,
    numpy=meaning,
    exact=True,  # by the methods of ``arithmetic`` only, so that rules can be judged exactly
    flops=lambda a, b, **attributes: 2 * np.prod(shape(a, b, **attributes)) * a[-1],
    efficiency=0.9,
    onnx=OnnxOperator("FusedMatMul", domain="com.microsoft"),
)


def turned(attributes: str, m: IndexMap) -> list[tuple[str]]:
    """The attributes with the second operand transposed, where ``m`` swaps its last two axes."""
    rank, given = len(m.result), parse_attributes(attributes)
    swaps = m.permutation == (*range(rank - 2), rank - 1, rank - 2)
    return [(format_attributes(**given, transB=1),)] if swaps and "transB" not in given else []


@rule_group("fused_matmul")
def fused(a: BufferVar, b: BufferVar, e: rules.ExtentsVar, t: rules.TextVar, m: rules.MapVar) -> Iterator[rules.Rule]:
    """Scaled products of transposed matrices as one call."""
    product = call("MatMul", "", [a, b], e).read() * rules.fill(t, e)
    alpha = rules.each(lambda factor: [(format_attributes(alpha=float(Fraction(factor))),)], t)
    yield becomes("scaled", product, call("FusedMatMul", alpha.text(0), [a, b], e).read(), exactness="reassociates")
    transposed = call("FusedMatMul", t, [a, b.read().view(m).compute()], e)
    yield becomes("turned", transposed, call("FusedMatMul", rules.each(turned, t, m).text(0), [a, b], e))


def main() -> None:
    q, k = tensor("q", (4, 64, 32)), tensor("k", (4, 64, 32))
    scores = (q @ k.transpose(0, 2, 1)) * 0.125
    with extended(FUSED):
        egraph = EGraph.of(scores)
        egraph.saturate()
        egraph.saturate([Pack("fused_matmul", groups=(fused,), operators=(FUSED,))])
        assert not egraph.judge().mismatches
        model = (program := egraph.extract()).to_onnx()
    print(program)
    assert [node.op_type for node in model.graph.node] == ["FusedMatMul"]

    values = {name: np.random.default_rng(ord(name)).random((4, 64, 32), dtype=np.float32) for name in ("q", "k")}
    (found,) = make_session(model.SerializeToString()).run(None, values)
    assert np.abs(found - evaluate(scores, values)).max() < 1e-5


if __name__ == "__main__":
    main()
