"""A scalar function of your own: ``x * sigmoid(x)`` is recognized as one function, ``silu``, and computed in a kernel.

One formula is everything that is said about it. What it means, how kernels compute it, how it is written where there
are no kernels, and whether a rule about it is right all follow from that formula.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from egraph_opt import optimize
from egraph_opt.algebra import apply, tensor, weight
from egraph_opt.egraph import language
from egraph_opt.egraph.language import Rule, TensorVar, equal, rule_group
from egraph_opt.ir.extensions import extended
from egraph_opt.ir.scalar import ScalarFunction
from egraph_opt.packs import Pack
from egraph_opt.scripting import EGraph

SILU = ScalarFunction(
    "silu",
    arity=1,
    definition=lambda f, x: f("mul", x, f("sigmoid", x)),
    keeps_zero=True,
    cost=10,  # additions; a little less than the product and the sigmoid that it replaces
)


@rule_group("silu")
def silu(x: TensorVar) -> Iterator[tuple[Rule, ...]]:
    """One function for what exporters write as two nodes."""
    yield equal("silu", x * language.apply("sigmoid", x), language.apply("silu", x))


PACK = Pack("silu", groups=(silu,), functions=(SILU,))


def main() -> None:
    draw = np.random.default_rng(0)
    x, w = tensor("x", (64, 128)), weight("w", (128, 96), draw.standard_normal((128, 96)) / 11)
    product = x @ w
    y = product * apply("sigmoid", product)
    plain = EGraph.of(y)
    plain.saturate()
    model = plain.extract().to_onnx()

    with extended(SILU):
        egraph = EGraph.of(y)
        egraph.saturate(plus=(silu,))
        assert egraph.equal(y, apply("silu", product))
        # All e-nodes of every class have the same value in exact arithmetic: the rule is right for every sigmoid.
        assert not egraph.judge().mismatches
        program = egraph.extract(portable=False)
        print(program)
        assert "silu" in str(program)

    result = optimize(model, rules=(PACK,), cost="static", threads=1)
    print(result.report.table())
    assert result.report.rule_matches["silu"] > 0
    assert result.report.generated_kernels == 1
    values = draw.standard_normal((64, 128), dtype=np.float32)
    (found,) = result.session().run(None, {"x": values})
    expected = program.evaluate({"x": values})["y"]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


if __name__ == "__main__":
    main()
