"""CUDA kernels against numpy, on the processor in the place of a GPU, and compiled for a GPU where nvcc is."""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from egraph_opt.backends import cuda_build, cuda_lower
from egraph_opt.backends.cuda_build import CudaKernel, cuda_source, joined, modules
from egraph_opt.backends.tvm_emit import CodeTooLongError
from egraph_opt.errors import EgraphOptError
from egraph_opt.gpu.files import Module, Work
from egraph_opt.gpu.host_device import HostDevice
from egraph_opt.ir import plain
from egraph_opt.ir.program import kernel_signature
from egraph_opt.ir.terms import Apply, leaves
from tests.backends.bodies import CASES, bodies, read
from tests.backends.kernel_helpers import evaluate

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ stands in for a GPU")
needs_nvcc = pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="no nvcc: the CUDA toolkit is not installed")


def kernels(term, schedules=None, refusal=CodeTooLongError):
    """The kernels of a body by schedule, each with its source, but those whose code is refused with ``refusal``."""
    body, _ = kernel_signature(term)
    inputs = tuple(leaves(body))
    found = []
    for schedule in schedules or cuda_lower.schedules(body):
        kernel = CudaKernel(body, inputs, schedule)
        try:
            found.append((kernel, cuda_source(kernel, "sm_90")))
        except refusal:
            continue
    return found


def check(term, *, tolerance=1e-5, seed=0, refusal=CodeTooLongError):
    made = kernels(term, refusal=refusal)
    if not made:
        assert refusal is EgraphOptError, "no schedule has code"
        return
    device = HostDevice("sm_90")
    device.load([Module(b"", joined([source for _, source in made]))])
    random = np.random.default_rng(seed)
    arrays = {s.name: random.standard_normal(s.extents).astype(np.float32) for s in made[0][0].inputs}
    expected = evaluate(made[0][0].body, arrays)
    for kernel, source in made:
        work = Work(
            "body",
            str(kernel.schedule),
            kernel.arguments,
            kernel.body.extents,
            kernel=kernel.name,
            module=0,
            blocks=source.launch.blocks,
            threads=source.launch.threads,
        )
        found = device.work(work, [device.upload(arrays[s.name]) for s in kernel.inputs])
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=str(kernel.schedule))


# Those with many threads take the stand-in long, and say nothing that others do not.
LARGE = {"softmax-band", "overlap-add-image", "shifted-adds-rows", "nhwc-7", "nchw-7", "grouped", "depthwise"}
SMALL = sorted(set(CASES) - {"empty", *LARGE})


@needs_compiler
@pytest.mark.parametrize("name", SMALL)
def test_kernel_agrees_with_numpy(name):
    check(CASES[name])


@needs_compiler
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_drawn_kernels_agree_with_numpy(term):
    if 0 in term.extents:
        return
    check(term, tolerance=1e-4, refusal=EgraphOptError)  # softmaxes in reductions have no code


@needs_compiler
@pytest.mark.parametrize("function", ["relu", "tanh", "gelu", "sigmoid", "softplus", "abs", "sqrt", "log", "exp"])
def test_what_is_no_number_stays_so(function):
    term = Apply(function, (read("x", 8),))
    made = kernels(term)
    device = HostDevice()
    device.load([Module(b"", joined([source for _, source in made]))])
    values = np.asarray([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-40], np.float32)
    kernel, source = made[0]
    work = Work(
        "b", "k", kernel.arguments, (8,), kernel=kernel.name, module=0, blocks=source.launch.blocks, threads=256
    )
    with np.errstate(all="ignore"):
        expected = evaluate(kernel.body, {"in0": values})
    np.testing.assert_allclose(device.work(work, [values]), expected, rtol=1e-6, atol=1e-6)


def test_schedules_read_back():
    for schedule in (cuda_lower.CudaSchedule(True, 128), cuda_lower.CudaSchedule(False, 256, 4)):
        assert cuda_lower.parse_schedule(str(schedule)) == schedule


def test_what_has_no_form_is_refused():
    with pytest.raises(EgraphOptError, match="empty or too large"):
        kernels(CASES["empty"], [cuda_lower.CudaSchedule(False, 256)])
    with pytest.raises(EgraphOptError, match="softmax"):
        kernels(CASES["softmax"], [cuda_lower.CudaSchedule(False, 256)])


def test_names_and_source_say_nothing_of_the_model():
    ((kernel, source),) = kernels(Apply("exp", (read("secret", 5),)))
    assert "secret" not in source.code
    assert kernel.name in source.code
    again = cuda_source(kernel, "sm_90")
    assert again.code == source.code


@needs_nvcc
def test_machine_code_and_its_resources():
    made = [item for name in ("gelu", "softmax", "layer-norm") for item in kernels(CASES[name])]
    found = modules([source for _, source in made], "sm_90")
    resources = {name: entry for module in found for name, entry in module.resources.items()}
    assert set(resources) == {kernel.name for kernel, _ in made}
    for kernel, _ in made:
        assert 0 < resources[kernel.name].registers <= 255
        rows = kernel.schedule.rows
        assert (resources[kernel.name].shared > 0) == rows
    assert all(module.cubin.startswith(b"\x7fELF") for module in found)


@pytest.mark.parametrize("name", sorted(CASES))
def test_bodies_travel_as_text(name):
    body = CASES[name]
    assert plain.from_json(plain.to_json(body)) == body
