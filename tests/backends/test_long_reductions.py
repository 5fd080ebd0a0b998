"""Kernels of reductions over many axes: one run of memory stays one loop, whatever its axes."""

import numpy as np
import pytest

from egraph_opt.backends import tvm_build
from egraph_opt.ir.terms import Apply, Read, Reduce, Source, leaves
from tests.backends.kernel_helpers import evaluate

# Bytes of code. Unrolling the short axes of the first case makes 150,000 for each sum, and takes LLVM seconds.
LARGEST_CODE = 50_000


def total(extents: tuple[int, ...], count: int, operation: str = "sum") -> Reduce:
    read = Read(Source("in0", extents, constant=False))
    return Reduce(operation, Apply("mul", (read, read)), count)


@pytest.mark.parametrize(
    ("extents", "count"),
    [((3, 6, 6, 5, 3, 4), 6), ((2, 9, 7, 3, 3), 4), ((5, 1, 13, 1, 9), 4), ((4, 3, 70), 2), ((3, 8, 8), 2)],
)
@pytest.mark.parametrize("operation", ["sum", "max"])
def test_code_is_short_and_right(extents: tuple[int, ...], count: int, operation: str) -> None:
    body = total(extents, count, operation)
    kernel = tvm_build.Kernel(body, tuple(leaves(body)))
    assert len(tvm_build.compile_object(kernel)) < LARGEST_CODE
    values = np.random.default_rng(0).standard_normal(extents).astype(np.float32)
    found = tvm_build.run_kernel(kernel, values)
    np.testing.assert_allclose(found, evaluate(body, {"in0": values}), rtol=1e-5)
