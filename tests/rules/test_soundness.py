"""After saturation every e-node of every class, evaluated exactly, equals its class."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egraph_opt.ir import definitions, maps
from egraph_opt.ir import expr as ex
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Read, Source, View
from tests.rules import operators

KINDS = {
    "conv": (operators.convolutions(), 40),
    "conv-transpose": (operators.convolutions(transposed=True), 40),
    "matmul": (operators.matrix_products(), 40),
    "band": (operators.band_products(), 30),
    "pool": (operators.pools(), 30),
    "reduction": (operators.reductions(), 30),
    "chain": (operators.chains(), 60),
    "sliced": (operators.sliced(), 40),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_enode_equals_its_class(kind: str) -> None:
    strategy, examples = KINDS[kind]
    _check(strategy, examples)


def test_a_transposed_convolution_does_not_stride_an_axis_it_only_reads() -> None:
    """The step of a slice was taken for a stride of the result, where the kernel has extent 1 along that axis."""
    larger, w = Source("x", (1, 2, 4, 8)), Source("w", (2, 3, 3, 1), True)
    index = [ex.iterator(0), ex.iterator(1), ex.iterator(2), ex.iterator(3) * 2]
    seen = View(Read(larger), maps.index_map(larger.extents, (1, 2, 4, 4), index))
    result = definitions.transposed_convolution(
        seen, Read(w), strides=(2, 1), dilations=(1, 1), pads=(0, 0, 0, 0), output_padding=(0, 0)
    )
    verdict, _ = operators.verdict(operators.program((larger, w), result))
    assert not verdict.mismatches, verdict.mismatches[0]


def _check(strategy: st.SearchStrategy[Program], examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(program: Program) -> None:
        verdict, saturation = operators.verdict(program)
        assert saturation.stop == "saturated"
        assert not verdict.mismatches, verdict.mismatches[0]
        assert verdict.checked > 0
        assert verdict.skipped == 0

    check()
