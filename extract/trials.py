"""What a kernel must compute, to be held against it before it is timed: the interpreter's values in float64."""

from __future__ import annotations

import numpy as np

from egraph_opt.backends.model_timer import Expected
from egraph_opt.backends.timing_worker import drawn
from egraph_opt.backends.tvm_build import Kernel
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.ir import points
from egraph_opt.ir.interpreter import Array, FloatArithmetic
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Compute
from egraph_opt.runtime.compare import TOLERANCES

# Elements that may be computed to know some values of one kernel; a few milliseconds of numpy.
BUDGET = 1 << 16
# How many times the error of numpy in float32 is right beside the tolerance of whole models: kernels sum in another
# order, and functions such as exp make much of little.
ROUNDING = 16.0


def kernel_model(kernel: Kernel, opset: int) -> bytes:
    """A model of a generated kernel alone, whose arguments are all inputs."""
    return standalone([_step(kernel)], {"y": kernel.name}, opset=opset)


def expected_of(kernel: Kernel) -> Expected:
    """What the model of a generated kernel must give at a sample of points, whatever its schedule is."""
    body, step = kernel.body, _step(kernel)
    # One input for each name, as the model has them.
    sources = list({source.name: source for source in reversed(step.arguments)}.values())[::-1]
    arrays = drawn([source.extents for source in sources])
    values = {source.name: array for source, array in zip(sources, arrays, strict=True)}
    some = points.sample(body, BUDGET)
    exact, rounded = (points.at(body, some, values, FloatArithmetic(kind)) for kind in (np.float64, np.float32))
    return expected(points.positions(some, body.extents), exact, rounded)


def _step(kernel: Kernel) -> Step:
    return Step("y", Compute(kernel.body), kernel.shape)


def expected(positions: Array, exact: Array, rounded: Array | None = None) -> Expected:
    """What must be found at some positions, given float64 and, where it is known, what numpy makes of it in float32.

    Where float32 has a NaN or an infinity and float64 a number nothing is expected: rounding decides.
    """
    with np.errstate(all="ignore"):
        values = exact.astype(np.float32).astype(np.float64)
        tolerance, finite = TOLERANCES["float32"], np.isfinite(values)
        scale = float(np.abs(values[finite]).max(initial=0.0))
        allowed = np.full(values.shape, tolerance.absolute + tolerance.relative * scale)
        if rounded is not None:
            other = rounded.astype(np.float64)
            same = (values == other) | (np.isnan(values) & np.isnan(other))
            error = np.where(same, 0.0, np.abs(values - other))
            allowed = np.where(np.isfinite(error), allowed + ROUNDING * error, np.inf)
    return Expected(positions, values, allowed)
