"""Raw egglog beside the built-in rules: a ruleset as text, for those who know the language.

``help(EGraph.run_egglog)`` lists the sorts and constructors.
"""

from __future__ import annotations

from egraph_opt import EGraph
from egraph_opt.algebra import apply, tensor

RULES = """
(ruleset exponentials)
(rule ((= e (Mul (Apply1 "exp" x) (Apply1 "exp" y))))
      ((union e (Apply1 "exp" (Add x y)))
       (derived "exponents-add" (NMul (Apply1 "exp" x) (Apply1 "exp" y)) (NApply1 "exp" (Add x y))))
      :ruleset exponentials :name "exponents-add")
"""


def main() -> None:
    a, b, c = (tensor(name, (8, 8)) for name in "abc")
    product = apply("exp", a) * apply("exp", b) * apply("exp", c)
    egraph = EGraph.of(product)
    egraph.run_egglog(RULES)
    print(egraph.run_egglog("(run exponentials 3)"))
    assert egraph.equal(product, apply("exp", a + b + c))
    print(egraph.members())

    # Facts can be asked and terms printed in egglog, too.
    print(egraph.run_egglog('(check (= (Named "y") (Apply1 "exp" e))) (print-size Apply1)'))

    # Built-in rules go on from there; one exponential costs less than three.
    egraph.saturate()
    program = egraph.extract(cost=lambda step: step.operations)
    print(program)
    assert program.cost == 3 * 64


if __name__ == "__main__":
    main()
