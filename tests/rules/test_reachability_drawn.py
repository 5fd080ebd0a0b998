"""The same derivations for operators drawn at random, wherever the transformation applies."""

from __future__ import annotations

from math import prod
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.rules.test_reachability import derived, numbers, reached

DRAWN = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def options(draw: st.DrawFn, *, strides: int, dilations: int, least_kernel: int = 1) -> dict[str, Any]:
    rank = draw(st.sampled_from([1, 2, 2]))
    kernel = tuple(draw(st.integers(least_kernel, 9 if rank == 1 else 5)) for _ in range(rank))
    stride = tuple(draw(st.integers(1, strides)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, dilations)) for _ in range(rank))
    pads = tuple(draw(st.integers(0, 3)) for _ in range(2 * rank))
    # More outputs than the dilation, so that windows overlap, and an image of more than one pixel.
    outputs = [draw(st.integers(d + 1, 7)) for d in dilation]
    size = tuple(
        max(2, s * (o - 1) + d * (k - 1) + 1 - pads[a] - pads[a + rank])
        for a, (o, s, d, k) in enumerate(zip(outputs, stride, dilation, kernel, strict=True))
    )
    channels = (draw(st.integers(2, 4)), draw(st.integers(1, 4)))
    return {"channels": channels, "size": size, "kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}


@DRAWN
@given(options(strides=1, dilations=4, least_kernel=2))
def test_matmul_and_shifted_adds(drawn: dict[str, Any]) -> None:
    """Stride 1 and at least two taps an axis."""
    reached(
        derived("conv", **drawn),
        lambda p: p.operator == "MatMul" and "shifted adds" in p.kind and drawn["channels"][0] in p.arguments[0],
    )


@DRAWN
@given(options(strides=4, dilations=4))
def test_im2col(drawn: dict[str, Any]) -> None:
    """Any convolution; without overlap the windows need no copy."""
    inner = drawn["channels"][0] * prod(drawn["kernel"])
    reached(derived("conv", **drawn), lambda p: p.operator == "MatMul" and inner in p.arguments[0])


@DRAWN
@given(options(strides=1, dilations=4, least_kernel=2))
def test_dilation_becomes_phases(drawn: dict[str, Any]) -> None:
    """A dilation above 1 on an axis with at least as many outputs and taps beyond the first."""
    assume(max(drawn["dilation"]) > 1)
    reached(
        derived("conv", **drawn),
        lambda p: p.operator == "Conv" and set(numbers(p, "dilations")) == {1} and "adds" not in p.kind,
    )


@DRAWN
@given(options(strides=4, dilations=1, least_kernel=2))
def test_stride_becomes_channels(drawn: dict[str, Any]) -> None:
    """A stride above 1 that the kernel exceeds on every strided axis."""
    strides, kernel = drawn["stride"], drawn["kernel"]
    assume(max(strides) > 1 and all(k > s for k, s in zip(kernel, strides, strict=True)))
    reached(derived("conv", **drawn), lambda p: p.operator == "Conv" and set(numbers(p, "strides")) == {1})


@DRAWN
@given(options(strides=4, dilations=1, least_kernel=2))
def test_transposed_becomes_overlap_add(drawn: dict[str, Any]) -> None:
    """Wherever a result is reached by more than one tap or the taps leave gaps."""
    full = [s * (n - 1) + k for s, n, k in zip(drawn["stride"], drawn["size"], drawn["kernel"], strict=True)]
    rank = len(full)
    assume(all(total > drawn["pads"][a] + drawn["pads"][a + rank] for a, total in enumerate(full)))
    assume(min(drawn["size"]) > 1)
    found = derived("conv_transpose", **drawn)
    reached(found, lambda p: p.operator == "MatMul" and ("overlap-add" in p.kind or "shifted adds" in p.kind))


@DRAWN
@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 4), st.integers(6, 20))
def test_band_becomes_phases(batch: int, width: int, dilation: int, length: int) -> None:
    assume(length >= 2 * dilation)
    reached(
        derived("band_matmul", batch=batch, size=(length, 3), kernel=(width,), dilation=(dilation,)),
        lambda p: (
            p.operator == "MatMul" and p.arguments[0][0] == (batch * dilation if batch * dilation > 1 else length)
        ),
    )
