"""The derivations every operator must reach by the generic rules, as predicates over what ``derive_operator`` finds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np
import pytest

from egraph_opt.derive import BUDGET, Derivation, Found, derive_operator
from egraph_opt.egraph.provenance import programs
from egraph_opt.egraph.saturate import saturated
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.ir import definitions, interpreter, maps
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Read, Reduce, Source, View
from egraph_opt.rules.schedule import PHASES, SIMPLIFICATION
from tests.rules import operators


@cache
def _derived(operator: str, options: tuple[tuple[str, Any], ...]) -> Derivation:
    return derive_operator(operator, **dict(options))


def derived(operator: str, **options: Any) -> Derivation:
    found = _derived(operator, tuple(options.items()))
    assert found.saturation.stop == "saturated"
    assert found.enodes <= BUDGET.enodes
    assert found.seconds <= BUDGET.seconds
    return found


def reached(found: Derivation, wanted: Callable[[Found], bool]) -> None:
    programs_of = [program for program in found.programs if wanted(program)]
    assert programs_of, f"not among:\n{found}"
    values = operators.values(found.program)
    arithmetic = interpreter.ModularArithmetic()
    reference = interpreter.run_program(found.program, values, arithmetic)["y"]
    for program in programs_of[:2]:
        assert program.rules
        np.testing.assert_array_equal(interpreter.evaluate(program.term, values, arithmetic), reference)


def numbers(program: Found, attribute: str) -> list[int]:
    return [int(n) for n in program.attributes.get(attribute, "1").split(",")]


CONVOLUTIONS = [
    {"channels": (6, 10), "size": (9, 7), "kernel": (5, 3), "pads": (2, 0, 2, 2)},
    {"channels": (3, 4), "size": (8,), "kernel": (3,), "pads": (1, 1), "batch": 2},
    {"channels": (2, 5), "size": (7, 9), "kernel": (3, 4), "stride": (2, 3), "pads": (1, 0, 0, 2)},
    {"channels": (2, 3), "size": (11, 12), "kernel": (3, 2), "dilation": (2, 4), "pads": (3, 1, 0, 2)},
    {"channels": (2, 3), "size": (4, 5, 4), "kernel": (2, 3, 2), "pads": (0, 1, 1, 1, 1, 0)},
    {"channels": (2, 2), "size": (13, 11), "kernel": (9, 7), "pads": (4, 3, 4, 3)},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_t1_conv_is_a_matmul_and_shifted_adds(options: dict[str, Any]) -> None:
    """Wherever windows overlap; where they do not, a matrix product needs no adds."""
    channels = options["channels"][0]
    reached(
        derived("conv", **options),
        lambda p: (
            p.operator == "MatMul"
            and p.kind.endswith("MatMul + shifted adds")
            and not p.is_im2col
            and p.arguments[0][-1] == channels
        ),
    )


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_conv_is_an_im2col_matmul(options: dict[str, Any]) -> None:
    inner = options["channels"][0] * prod(options["kernel"])
    reached(
        derived("conv", **options),
        lambda p: p.operator == "MatMul" and p.is_im2col and p.arguments[0][-1] == inner and "adds" not in p.kind,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (1, 1)},
        {"kernel": (1, 1), "stride": (2, 3), "batch": 2},
        {"kernel": (1,), "size": (5,), "pads": (1, 2)},
    ],
)
def test_t2_conv_1x1_is_a_matmul(options: dict[str, Any]) -> None:
    reached(
        derived("conv", **options), lambda p: p.operator == "MatMul" and 6 in p.arguments[0] and "adds" not in p.kind
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (4, 4), "stride": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel": (5, 3), "stride": (2, 1), "pads": (1, 0, 2, 1), "output_padding": (1, 0), "size": (3, 4)},
        {"kernel": (3,), "stride": (3,), "pads": (0, 1), "size": (4,), "batch": 2},
        {"kernel": (4, 3), "stride": (3, 2), "dilation": (2, 1), "pads": (0, 1, 1, 0), "size": (3, 3)},
    ],
)
def test_t3_conv_transpose_is_a_matmul_and_overlap_add(options: dict[str, Any]) -> None:
    found = derived("conv_transpose", **options)
    reached(
        found,
        lambda p: p.operator == "MatMul" and "overlap-add" in p.kind and not p.is_im2col and p.arguments[0][-1] == 6,
    )


@pytest.mark.parametrize(
    ("options", "phases"),
    [
        ({"dilation": (2, 2), "pads": (2, 2, 2, 2)}, 4),
        ({"dilation": (3, 2), "pads": (3, 1, 2, 2), "size": (11, 8)}, 6),
        ({"dilation": (4,), "kernel": (3,), "size": (17,), "pads": (3, 4), "batch": 2}, 8),
        ({"dilation": (2, 2), "kernel": (5, 2), "size": (12, 9), "pads": (1, 1, 3, 0)}, 4),
    ],
)
def test_t4_dilated_conv_is_a_plain_conv_with_phases_on_the_batch_axis(options: dict[str, Any], phases: int) -> None:
    reached(
        derived("conv", **options),
        lambda p: (
            p.operator == "Conv"
            and set(numbers(p, "dilations")) == {1}
            and p.arguments[0][0] == phases
            and "adds" not in p.kind
        ),
    )


@pytest.mark.parametrize("kernel", [(5, 5), (7, 7), (9, 9), (6, 4), (9, 1), (5, 8)])
def test_t5_a_large_kernel_is_stacked_smaller_ones(kernel: tuple[int, int]) -> None:
    """Kernels of two or three parts that waste at most a quarter of the taps; 3 cannot be split so."""
    pads = (kernel[0] // 2, kernel[1] // 2, kernel[0] // 2, kernel[1] // 2)
    reached(
        derived("conv", channels=(2, 3), size=(10, 9), kernel=kernel, pads=pads),
        lambda p: (
            p.operator == "Conv"
            and "adds" in p.kind
            and not p.is_im2col
            and len(p.arguments[1]) == 4
            and all(n < k or k < 4 for n, k in zip(p.arguments[1][2:], kernel, strict=True))
            and max(p.arguments[1][2:]) > 1
        ),
    )


@pytest.mark.parametrize(("length", "width", "dilation"), [(24, 5, 2), (30, 3, 3), (16, 3, 4)])
def test_t6_dilated_band_matmul_is_a_plain_one_with_phases_on_the_batch_axis(
    length: int, width: int, dilation: int
) -> None:
    per_phase = -(-length // dilation)
    reached(
        derived("band_matmul", size=(length, 8), kernel=(width,), dilation=(dilation,)),
        lambda p: p.operator == "MatMul" and p.arguments[0][0] == dilation and p.call.extents[1] == per_phase,
    )


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"stride": (2, 2), "pads": (1, 1, 1, 1)}, 24),
        ({"stride": (2, 3), "kernel": (3, 5), "size": (12, 13)}, 36),
        ({"stride": (2,), "kernel": (5,), "size": (13,), "pads": (2, 1)}, 12),
    ],
)
def test_strided_conv_is_a_space_to_depth_conv(options: dict[str, Any], channels: int) -> None:
    """Where windows overlap: a kernel no larger than the stride is a matrix product at once."""
    reached(
        derived("conv", **options),
        lambda p: p.operator == "Conv" and set(numbers(p, "strides")) == {1} and p.arguments[0][1] == channels,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (4, 4), "stride": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel": (6,), "stride": (3,), "pads": (1, 0), "size": (5,)},
        {"kernel": (5, 4), "stride": (2, 2), "pads": (0, 1, 1, 0), "size": (3, 4), "output_padding": (0, 1)},
    ],
)
def test_conv_transpose_is_phase_convs_and_interleave(options: dict[str, Any]) -> None:
    taps = [-(-k // s) for k, s in zip(options["kernel"], options["stride"], strict=True)]
    reached(
        derived("conv_transpose", **options),
        lambda p: p.operator == "Conv" and "overlap-add" in p.kind and list(p.arguments[1][2:]) == taps,
    )


@pytest.mark.parametrize(("channels", "groups"), [((6, 10), 2), ((6, 6), 6), ((6, 12), 3)])
def test_grouped_conv_is_a_batched_matmul(channels: tuple[int, int], groups: int) -> None:
    found = derived("conv", channels=channels, groups=groups, pads=(1, 1, 1, 1))
    reached(found, lambda p: p.operator == "MatMul" and len(p.arguments[0]) == 3 and p.arguments[0][0] == groups)
    reached(found, lambda p: p.operator == "Conv" and numbers(p, "group") == [groups] and "adds" not in p.kind)


@pytest.mark.parametrize("order", [(2, 3, 0, 1), (1, 0, 2, 3), (0, 2, 3, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_in_any_axis_order_is_a_conv(order: tuple[int, ...], groups: int) -> None:
    """Batch, channels (of groups) and space stored in any order: the layout is the call's argument."""
    extents = (2, 4, 6, 5)
    x = Source("x", tuple(extents[axis] for axis in order))
    w = Source("w", (4, 4 // groups, 3, 3), True)
    stored = View(Read(x), maps.permute(x.extents, [order.index(axis) for axis in range(4)]))
    term = definitions.convolution(stored, Read(w), strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), groups=groups)
    whole = Program((x, w), (("y", term),), ("y",))
    egraph, _ = saturated(whole, PHASES, SIMPLIFICATION)
    calls = [found.call for found in programs(Snapshot(egraph), whole, "y")]
    assert any(c.operator == "Conv" and c.arguments[0].extents == extents and c.extents == extents for c in calls)


def test_average_pooling_is_a_conv() -> None:
    reached(
        derived("pool", operation="average", stride=(2, 1), pads=(1, 0, 1, 1)),
        lambda p: p.operator == "Conv" and p.kind == "Conv + mul",
    )


def test_max_pooling_stays_a_pool() -> None:
    reached(derived("pool", stride=(2, 1), pads=(1, 0, 1, 1)), lambda p: p.operator == "MaxPool")


def test_sums_are_contractions_and_reductions() -> None:
    x = Source("x", (3, 4, 5))
    whole = Program((x,), (("y", Reduce("sum", View(Read(x), maps.permute(x.extents, (0, 2, 1))), 1)),), ("y",))
    egraph, _ = saturated(whole, PHASES, SIMPLIFICATION)
    operators_found = {found.call.operator for found in programs(Snapshot(egraph), whole, "y")}
    assert {"ReduceSum", "MatMul"} <= operators_found


def test_matmul_takes_both_orders_and_a_batch() -> None:
    found = derived("matmul", batch=3)
    reached(found, lambda p: p.kind == "batched MatMul")
    reached(found, lambda p: p.kind == "batched MatMul + permute")
