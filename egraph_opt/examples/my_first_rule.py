"""My first rule: declare an equation, see it fire, test it.

A rule group is a generator whose parameters are the pattern variables; it yields equations between terms over them.
"""

from __future__ import annotations

from collections.abc import Iterator

from egraph_opt import EGraph, Rule, TensorVar, algebra, apply, becomes, rule_group
from egraph_opt.testing import check_rule


@rule_group
def rectifiers(x: TensorVar) -> Iterator[Rule]:
    """What a tensor keeps above zero and below zero is all of it."""
    above, below = apply("relu", x), apply("relu", apply("neg", x))
    yield becomes("rejoined", apply("sub", above, below), x)


@rule_group
def mistaken(x: TensorVar) -> Iterator[Rule]:
    """The same with a slip: a plus instead of a minus."""
    yield becomes("slipped", apply("relu", x) + apply("relu", apply("neg", x)), x)


def main() -> None:
    x = algebra.tensor("x", (4, 8))
    y = algebra.apply("relu", x) - algebra.apply("relu", -x)
    egraph = EGraph.of(y * 3)
    assert not egraph.equal(y, x)

    saturation = egraph.saturate([rectifiers])
    print(saturation)
    assert saturation.matches["rejoined"] >= 1
    assert egraph.equal(y, x)
    print(egraph.extract())  # the rectifiers are gone

    (right,) = rectifiers.rules
    report = check_rule(right)
    print(f"{right.name}: {report.outcome}, fired on {report.fired} programs")
    assert report.ok

    (wrong,) = mistaken.rules
    report = check_rule(wrong)
    print(report.message)  # a reproduction to paste
    assert not report.ok


if __name__ == "__main__":
    main()
