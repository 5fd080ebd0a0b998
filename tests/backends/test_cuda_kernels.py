"""CUDA kernels against numpy, on the processor in the place of a GPU, and compiled for a GPU where nvcc is."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from egraph_opt.backends import cuda_build, cuda_schedule, tvm_schedule
from egraph_opt.backends.cuda_build import CudaKernel, cuda_source, joined, modules
from egraph_opt.backends.cuda_schedule import CudaSchedule
from egraph_opt.backends.tvm_emit import CodeTooLongError
from egraph_opt.backends.tvm_tree import Stage, walk
from egraph_opt.errors import EgraphOptError
from egraph_opt.gpu.files import Module, Work
from egraph_opt.gpu.host_device import HostDevice
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps, plain
from egraph_opt.ir.program import kernel_signature
from egraph_opt.ir.terms import Apply, Softmax, View, leaves
from tests.backends.bodies import CASES, bodies, read
from tests.backends.kernel_helpers import evaluate

I0, I1 = ex.iterator(0), ex.iterator(1)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ stands in for a GPU")
needs_nvcc = pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="no nvcc: the CUDA toolkit is not installed")


def every_schedule(body):
    """The schedules of a body, and those that only larger ones have."""
    form = tvm_schedule.normal_form(body)
    found = dict.fromkeys(cuda_schedule.schedules(body))
    if any(isinstance(node, Stage) for node in walk(form.region.value)):
        return [*found | {CudaSchedule("rows", share=32): None}]
    found |= dict.fromkeys(CudaSchedule("tiles", axis=axis) for axis in cuda_schedule.turned_axes(form, shortest=2))
    return [*found | ({CudaSchedule("vectors"): None} if cuda_schedule.wide_loads(form) else {})]


def kernels(term, schedules=None, refusal=CodeTooLongError):
    """The kernels of a body by schedule, each with its source, but those whose code is refused with ``refusal``."""
    body, _ = kernel_signature(term)
    inputs = tuple(leaves(body))
    found = []
    for schedule in schedules or every_schedule(body):
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


def turned(*extents, fill=0.0, shift=0):
    """A matrix (or several) read across, beyond its end by a shift."""
    *outer, rows, columns = extents
    points = [ex.iterator(i) for i in range(len(extents))]
    indices = [*points[:-2], points[-1], points[-2] + shift]
    return View(read("x", *extents), maps.index_map(extents, (*outer, columns, rows), indices, fill=fill))


ARRANGED = {
    "transpose": (turned(45, 70), "tiles"),
    "transposes": (turned(3, 33, 31), "tiles"),
    "transpose-of-more": (turned(40, 64, shift=3, fill=-1.0), "tiles"),
    "transpose-and-residual": (Apply("relu", (Apply("add", (turned(64, 40), read("r", 40, 64))),)), "tiles"),
    "wide": (Apply("tanh", (Apply("mul", (read("a", 6, 20), read("b", 6, 20))),)), "vectors"),
    "wide-and-narrow": (Apply("add", (turned(12, 8), read("r", 8, 12))), "vectors"),
    "wide-part": (View(read("x", 5, 16), maps.index_map((5, 16), (7, 8), [I0, I1 + 4])), "vectors"),
    "short-rows": (Softmax(read("x", 13, 7), 1), "rows threads=256 share=32"),
    "rows": (Softmax(read("x", 3, 5, 90), 1), "rows threads=256 share=32"),
    "long-rows": (Softmax(read("x", 3, 1500), 1), "rows threads=512 share=512"),
}


@needs_compiler
@pytest.mark.parametrize("name", sorted(ARRANGED))
def test_arrangements(name):
    body, wanted = ARRANGED[name]
    assert any(str(schedule).startswith(wanted) for schedule in every_schedule(kernel_signature(body)[0]))
    check(body, tolerance=1e-6)


def test_tiles_read_and_write_neighbours():
    ((_, source),) = kernels(turned(64, 64), [CudaSchedule("tiles", axis=0)])
    assert "__shared__" in source.code
    assert source.launch.blocks == 4
    ((_, source),) = kernels(read("x", 64, 64), [CudaSchedule("vectors")])
    assert source.code.count("*(float4*)(in0_ptr") == source.code.count("*(float4*)(out_ptr") == 1


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
    made = [
        CudaSchedule("elements", each=4),
        CudaSchedule("vectors"),
        CudaSchedule("tiles", axis=2),
        CudaSchedule("rows", threads=512, share=32),
    ]
    for schedule in made:
        assert cuda_schedule.parse(str(schedule)) == schedule


def test_what_has_no_form_is_refused():
    with pytest.raises(EgraphOptError, match="empty or too large"):
        kernels(CASES["empty"], [CudaSchedule("elements")])
    with pytest.raises(EgraphOptError, match="softmax"):
        kernels(CASES["softmax"], [CudaSchedule("elements")])


def test_names_and_source_say_nothing_of_the_model():
    ((kernel, source),) = kernels(Apply("exp", (read("secret", 5),)))
    assert "secret" not in source.code
    assert kernel.name in source.code
    again = cuda_source(kernel, "sm_90")
    assert again.code == source.code


@needs_nvcc
def test_machine_code_and_its_resources():
    made = [item for name in ("gelu", "softmax", "layer-norm") for item in kernels(CASES[name])]
    found, refused = modules([source for _, source in made], "sm_90")
    assert not refused
    resources = {name: entry for module in found for name, entry in module.resources.items()}
    assert set(resources) == {kernel.name for kernel, _ in made}
    for kernel, _ in made:
        assert 0 < resources[kernel.name].registers <= 255
        assert (resources[kernel.name].shared > 0) == (kernel.schedule.share > cuda_schedule.WARP)
    assert all(module.cubin.startswith(b"\x7fELF") for module in found)


@needs_nvcc
def test_a_kernel_that_nvcc_refuses_costs_the_others_nothing():
    made = [source for _, source in kernels(CASES["gelu"])]
    code = made[0].code.replace(made[0].name, "k_broken") + "this is no code"
    broken = replace(made[0], name="k_broken", code=code)
    found, refused = modules([made[0], broken, *made[1:]], "sm_90")
    assert list(refused) == ["k_broken"]
    assert "nvcc refused" in refused["k_broken"]
    assert {name for module in found for name in module.resources} == {source.name for source in made}


@pytest.mark.parametrize("name", sorted(CASES))
def test_bodies_travel_as_text(name):
    body = CASES[name]
    assert plain.from_json(plain.to_json(body)) == body
