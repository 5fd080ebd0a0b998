"""After saturation every e-node of every class, evaluated exactly, equals its class."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egraph_opt.ir.program import Program
from tests.rules import operators

KINDS = {
    "conv": (operators.convolutions(), 40),
    "conv-transpose": (operators.convolutions(transposed=True), 40),
    "matmul": (operators.matrix_products(), 40),
    "band": (operators.band_products(), 30),
    "pool": (operators.pools(), 30),
    "reduction": (operators.reductions(), 30),
    "chain": (operators.chains(), 40),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_enode_equals_its_class(kind: str) -> None:
    strategy, examples = KINDS[kind]
    _check(strategy, examples)


def _check(strategy: st.SearchStrategy[Program], examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(program: Program) -> None:
        verdict, saturation = operators.verdict(program)
        assert saturation.stop == "saturated"
        assert saturation.seconds < 10
        assert not verdict.mismatches, verdict.mismatches[0]
        assert verdict.checked > 0
        assert verdict.skipped == 0

    check()
