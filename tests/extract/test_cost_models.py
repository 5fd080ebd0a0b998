"""What cost models say of single steps."""

from math import inf

import pytest

from egraph_opt.costs import (
    NAMED,
    Device,
    Energy,
    Latency,
    Launches,
    PeakMemory,
    Roofline,
    StepInfo,
    Traffic,
    blended,
)
from egraph_opt.errors import UsageError
from egraph_opt.extract.cost_models import measures, name_of
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.extract.step_info import info_of, priced, static_seconds
from egraph_opt.ir.terms import Call, Reshape, Source

PRODUCT = Call("MatMul", "", (Source("x", (64, 100)), Source("w", (100, 32), True)), (64, 32))
SHAPE = Reshape(Source("x", (64, 100)), (6400,))
BYTES = 4 * (64 * 100 + 100 * 32 + 64 * 32)


def test_every_model_of_a_product_and_of_a_reshape() -> None:
    product, shape = info_of(PRODUCT), info_of(SHAPE)
    assert (Traffic()(product), Traffic()(shape)) == (BYTES, 0)
    assert (Launches()(product), Launches()(shape)) == (1, 0)
    assert (PeakMemory()(product), PeakMemory()(shape)) == (4 * 64 * 32, 0)
    assert Latency()(product) == static_seconds(PRODUCT) == product.seconds
    operations = 2 * 64 * 100 * 32
    assert Energy()(product) == pytest.approx(1e-12 * (operations * 2.3 + BYTES * 12.5))
    assert Energy(operation=1.0, bytes=((1 << 60, 0.0),))(product) == pytest.approx(1e-12 * operations)
    assert Energy()(shape) == 0


def test_measured_seconds_replace_those_expected() -> None:
    measured = StepInfo(**{**vars(info_of(PRODUCT)), "measured": 0.25})
    assert Latency()(measured) == 0.25 + STEP_SECONDS
    assert Roofline()(measured) == Roofline()(info_of(PRODUCT))


def test_a_roofline_has_a_launch_a_peak_and_a_roof_for_every_cache() -> None:
    launch = Device(flops=inf, bandwidths=((1 << 62, inf),), call_seconds=3e-6)
    assert Roofline(launch)(info_of(PRODUCT)) == pytest.approx(3e-6 + STEP_SECONDS)
    peak = Device(flops=1e6, bandwidths=((1 << 62, inf),), call_seconds=0.0, efficiency={"MatMul": 0.5})
    assert Roofline(peak)(info_of(PRODUCT)) == pytest.approx(2 * 64 * 100 * 32 / 0.5e6 + STEP_SECONDS)
    for cache, seconds in ((BYTES, BYTES / 1e6), (BYTES - 1, BYTES / 1e3)):
        memory = Device(flops=inf, bandwidths=((cache, 1e6), (1 << 62, 1e3)), call_seconds=0.0)
        assert Roofline(memory)(info_of(PRODUCT)) == pytest.approx(seconds + STEP_SECONDS)
    assert Roofline(Device(reshape_seconds=7.0))(info_of(SHAPE)) == 7.0


def test_a_blend_is_a_weighted_sum_and_measures_if_a_part_does() -> None:
    blend = blended({Traffic(): 2.0, Launches(): 10.0})
    assert blend(info_of(PRODUCT)) == 2 * BYTES + 10
    assert not measures(blend)
    assert measures(blended({blend: 1.0, Latency(): 0.0}))
    assert measures(Latency())
    assert not measures(lambda step: step.seconds)
    assert blended({Roofline(): 1.0, Energy(): 0.0})(info_of(PRODUCT)) == Roofline()(info_of(PRODUCT))
    for wrong in ({}, {Traffic(): -1.0}, {Traffic(): float("nan")}, {Traffic(): inf}):
        with pytest.raises(UsageError, match="a blend needs"):
            blended(wrong)
    with pytest.raises(UsageError, match="'traffic' is no cost model"):
        blended({"traffic": 1.0})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="cannot be blended"):
        blended({PeakMemory(): 1.0})
    with pytest.raises(UsageError, match="speeds of a device are above 0"):
        Device(flops=-1.0)


def test_names() -> None:
    def mine(step: StepInfo) -> float:
        return 0.0

    assert [name_of(model) for model in NAMED.values()] == list(NAMED)
    assert (name_of(mine), name_of(Roofline())) == ("mine", "Roofline")


def test_what_is_no_cost() -> None:
    for cost in (float("nan"), -1.0):
        with pytest.raises(UsageError, match=r"the cost model gave .* for MatMul"):
            priced(lambda step, cost=cost: cost, info_of(PRODUCT))
    assert priced(lambda step: inf, info_of(PRODUCT)) == inf
