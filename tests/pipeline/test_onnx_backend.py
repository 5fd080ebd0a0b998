"""A sample of the cases that onnx ships, optimized as a whole, every region replaced whether worth it or not.

``python -m bench.backend_suite`` goes through all of them.
"""

from pathlib import Path

import pytest

from bench.backend_suite.cases import KINDS, collect, with_weights
from bench.backend_suite.judge import answer, judge
from bench.backend_suite.optimizers import ours
from egraph_opt.frontends import regions

# Every so many cases are tested; the light networks take long.
STRIDE = 40
SAMPLED = KINDS[:-1]


@pytest.mark.parametrize(("portable", "weights"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_sample(monkeypatch, tmp_path: Path, portable: bool, weights: bool) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(regions, "_worthwhile", lambda *_: True)
    cases = collect(SAMPLED)[3 + 10 * (2 * portable + weights) :: STRIDE]
    outcomes = {}
    for case in map(with_weights, cases) if weights else cases:
        reference = answer(case)
        if not reference.problem:
            folder = tmp_path / case.name
            folder.mkdir()
            outcomes[case.name] = judge(case, reference, ours(portable=portable), folder)
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.right} == {}
    kinds = [outcome.kind for outcome in outcomes.values()]
    # Right ones have new nodes, whether better or not.
    assert kinds.count("right") > 3
    assert kinds.count("unchanged") > 10
