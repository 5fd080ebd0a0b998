"""From a model to a measured GPU program and its answers, with the processor in the place of the GPU."""

import shutil
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from egraph_opt import offline
from egraph_opt.backends.cuda_build import find_nvcc
from egraph_opt.cli import main
from egraph_opt.errors import EgraphOptError, InputRejected, UsageError
from egraph_opt.extract import gpu_devices
from egraph_opt.extract.profile import Measurement, Profile, devices
from egraph_opt.gpu import profiling
from egraph_opt.gpu.assembly import best_program
from egraph_opt.gpu.devices import roofline_key
from egraph_opt.gpu.files import LIBRARY, MODE, Bundle, LibraryCall, Module, Program, ProgramStep, Work, read_arrays
from egraph_opt.gpu.host_device import HostDevice
from egraph_opt.gpu.running import Runner, random_inputs
from egraph_opt.ir import plain
from egraph_opt.ir.terms import Apply, Read, Source
from tests.pipeline.support import answers, normal, upscaler

needs_cuda_compiler = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: the CUDA toolkit is not installed")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ stands in for a GPU")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its bundle."""
    if find_nvcc() is None:
        pytest.skip("no nvcc: the CUDA toolkit is not installed")
    folder = tmp_path_factory.mktemp("gpu")
    onnx.save(upscaler("N", ("y", "b")), folder / "model.onnx")
    assert main(["plan", str(folder / "model.onnx"), "--shape", "N=2", "-q"]) == 0
    return folder


@needs_compiler
def test_the_commands_one_after_the_other(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, bundle, database = (str(files / name) for name in ("model.onnx", "model.bundle", "host.db"))
    assert main(["profile", bundle, "-o", database, "--device", "host"]) == 0
    assert "failed" not in capsys.readouterr().out
    options = ["--target", "cuda:sm_90", "--profile-db", database, "--shape", "N=2"]
    assert main(["optimize", model, *options, "-o", str(files / "model.gpu")]) == 0
    assert "chosen by the measurements of sm_90; host, in the place of a GPU" in capsys.readouterr().out
    np.savez(files / "in.npz", x=normal(2, 4, 6, 6))
    arrays = ["--inputs", str(files / "in.npz"), "--outputs", str(files / "out.npz")]
    assert main(["run", str(files / "model.gpu"), "--device", "host", "--rounds", "2", *arrays]) == 0
    assert "latency on sm_90; host" in capsys.readouterr().out
    found, expected = read_arrays(files / "out.npz"), answers(upscaler("N", ("y", "b")), {"x": normal(2, 4, 6, 6)})
    assert list(found) == ["y", "b"]
    for value, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


def test_every_kernel_is_compiled_and_the_same_question_gives_the_same_bytes(files: Path, tmp_path: Path) -> None:
    bundle = Bundle.read(files / "model.bundle")
    kernels = [work for work in bundle.works if work.is_kernel]
    assert kernels
    assert any(work.implementation == LIBRARY for work in bundle.works)
    for work in kernels:
        module = bundle.modules[work.module]
        assert work.kernel in module.resources
        assert module.cubin.startswith(b"\x7fELF")
        assert not module.resources[work.kernel].spilled
    offline.plan(upscaler("N", ("y", "b")), shapes={"N": 2}).write(tmp_path / "again.bundle")
    again = Bundle.read(tmp_path / "again.bundle")
    assert replace(again, model=bundle.model) == bundle


@needs_compiler
def test_plans_of_the_bundle_run_where_only_the_weights_are(files: Path, tmp_path: Path) -> None:
    bundle = Bundle.read(files / "model.bundle")
    model = upscaler("N", ("y", "b"))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    device = HostDevice(bundle.architecture)
    profile = Profile(tmp_path / "p.db", device.key, MODE)
    assert profiling.measure(bundle, device, profile) == []
    x = normal(2, 4, 6, 6)
    expected = answers(model, {"x": x})
    for kernels in (True, False):
        program = best_program(bundle, profile, weights, kernels=kernels)
        assert kernels or not any(step.work is not None and step.work.is_kernel for step in program.steps)
        found = Runner(program, device).run({"x": x})
        for value, wanted in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(EgraphOptError, match=r"no plan of .* is measured as a whole"):
        best_program(bundle, Profile(None, device.key, MODE), weights)


def test_static_costs_are_named_as_such(files: Path, tmp_path: Path) -> None:
    database = tmp_path / "roofline.db"
    assert main(["profile", str(files / "model.bundle"), "-o", str(database), "--device", "roofline", "-q"]) == 0
    assert devices(database) == [roofline_key("sm_90")]
    assert "not measured" in roofline_key("sm_90")
    program = offline.choose(upscaler("N", ("y", "b")), database, shapes={"N": 2})
    assert program.seconds > 0
    with pytest.raises(UsageError, match="no device fits"):
        offline.choose(upscaler("N", ("y", "b")), database, device="NVIDIA H999")
    Profile(database, "sm_90; another", MODE).add([Measurement("a", LIBRARY, (1.0,))])
    with pytest.raises(UsageError, match="several devices fit"):
        offline.choose(upscaler("N", ("y", "b")), database)
    with pytest.raises(EgraphOptError, match="no plan of the model is measured as a whole"):
        offline.choose(upscaler("N", ("y", "b")), database, device="another", shapes={"N": 2})


def test_without_a_database_the_choice_is_static_and_says_so(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--target", "cuda:sm_90", "--shape", "N=2", "-o", str(files / "static.gpu")]
    assert main(["optimize", str(files / "model.onnx"), *options]) == 0
    printed = capsys.readouterr().out
    assert "NOT MEASURED: chosen by a roofline of h200" in printed
    assert "intermediate results take" in printed
    program = Program.read(files / "static.gpu")
    assert program.device == roofline_key("sm_90")
    assert program.seconds > 0


def test_measurements_of_other_code_are_not_used(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.read(files / "model.bundle")
    profile = Profile(tmp_path / "old.db", "sm_90; some GPU", MODE)
    # The same ways, but the kernels are those of another version.
    profile.add(
        Measurement(
            work.signature, work.implementation.replace("code=", "code=0."), (0.001 if work.is_kernel else 1.0,)
        )
        for work in bundle.works
    )
    model = upscaler("N", ("y", "b"))
    with pytest.raises(EgraphOptError, match="which this version does not make"):
        offline.choose(model, tmp_path / "old.db", shapes={"N": 2})
    monkeypatch.setattr(gpu_devices, "PROFILES", tmp_path)
    assert offline.choose(model, shapes={"N": 2}).device == roofline_key("sm_90")


def test_programs_of_library_calls_alone(files: Path) -> None:
    model = upscaler("N", ("y", "b"))
    for kernels in (True, False):
        program = offline.choose(model, shapes={"N": 2}, kernels=kernels)
        assert any(step.work is not None and step.work.is_kernel for step in program.steps) == kernels
    x = normal(2, 4, 6, 6)
    found = Runner(program, HostDevice(program.architecture)).run({"x": x})
    for value, wanted in zip(found.values(), answers(model, {"x": x}), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_measurements_that_come_with_the_package_are_found(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.read(files / "model.bundle")
    device = HostDevice(bundle.architecture)
    profiling.measure(bundle, device, Profile(tmp_path / "a.db", device.key, MODE))
    Profile(tmp_path / "b.db", "sm_80; another architecture", MODE).add([Measurement("a", LIBRARY, (1.0,))])
    monkeypatch.setattr(gpu_devices, "PROFILES", tmp_path)
    program = offline.choose(upscaler("N", ("y", "b")), shapes={"N": 2})
    assert program.device == device.key
    # What it does not know is not half measured.
    assert offline.choose(upscaler("N", ("y", "b")), shapes={"N": 3}).device == roofline_key("sm_90")


def test_buffers_lie_in_one_arena() -> None:
    names = ["x", *(f"b{i}" for i in range(6))]
    steps = [
        ProgramStep(
            name,
            (before,),
            (300,),
            Work("", LIBRARY, ((300,),), (300,), (LibraryCall("out", "Exp", "function=sigmoid", ("in0",), (300,)),)),
        )
        for before, name in pairwise(names)
    ]
    steps[3:4] = [ProgramStep("matrix", ("b2",), (30, 10)), replace(steps[3], arguments=("flat",))]
    steps.insert(4, ProgramStep("flat", ("matrix",), (300,)))
    program = Program("m", "sm_90", {"x": (300,)}, tuple(steps), {"y": "b5", "first": "b0"}, {}, ())
    runner = Runner(program, HostDevice())
    # A step reads one buffer and writes another; the first one is an output and stays.
    assert runner.memory == program.memory()
    assert runner.memory.live == 3 * 1200
    assert runner.memory.peak == 3 * 1280
    inputs = random_inputs(program, 1)
    found = runner.run(inputs)
    runner.run(random_inputs(program, 2))
    value = inputs["x"]
    for name in names[1:]:
        value = 1 / (1 + np.exp(-value))
        if name in program.outputs.values():
            (output,) = (key for key, buffer in program.outputs.items() if buffer == name)
            np.testing.assert_allclose(found[output], value, rtol=1e-5)
    assert program.memory(lambda work: work.is_kernel).peak == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["plan", "nothing.onnx"], 3, "is not a file"),
        (["profile", "model.onnx", "-o", "p.db"], 3, "is not such a file"),
        (["profile", "model.bundle", "-o", "nowhere/p.db"], 2, "cannot be written"),
        (["profile", "model.bundle", "-o", "model.onnx", "--device", "host"], 3, "is not used"),
        (
            ["optimize", "model.onnx", "--target", "cuda:sm_90", "--profile-db", "model.onnx", "-o", "o"],
            3,
            "not a profile",
        ),
        (["run", "model.bundle", "--device", "host"], 3, "is not such a file"),
        (["run", "nothing.gpu", "--device", "host"], 3, "cannot read"),
    ],
)
def test_what_is_wrong_is_said(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    here = [str(files / text) if "." in text and ":" not in text else text for text in arguments]
    assert main(here) == status
    assert message in capsys.readouterr().err


def test_symbolic_dimensions_and_nodes_outside_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match=r"cannot run on a GPU as a whole: node .* is outside the algebra"):
        offline.plan(upscaler("N", ("y", "b")))
    with pytest.raises(UsageError, match="one length for each dimension"):
        offline.plan(upscaler("N", ("y", "b")), shapes={"N": [1, 2]})
    with pytest.raises(UsageError, match="unknown target 'cuda:sm_1'"):
        offline.plan(upscaler("N", ("y", "b")), target="cuda:sm_1")


def work_of(body: object, source: str) -> tuple[Work, Module]:
    """A kernel over one vector of 8, with the body it is said to have and the code it has."""
    code = f'extern "C" __global__ void k_test(float* __restrict__ a, float* __restrict__ b) {{\n{source}\n}}\n'
    text = plain.to_json(body)  # type: ignore[arg-type]
    return Work("kernel(8)", "kernel t", ((8,),), (8,), (), "k_test", 0, 1, 8, text), Module(b"", code)


@needs_compiler
@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("b[threadIdx.x] = a[threadIdx.x] + 1;", "wrong at [0]"),
        ("if (threadIdx.x < 7) b[threadIdx.x] = a[threadIdx.x] < 0 ? 0 : a[threadIdx.x];", "wrong at [7]: nan"),
        ("b[threadIdx.x] = a[threadIdx.x] < 0 ? 0 : a[threadIdx.x];", ""),
        ("this is no code;", "refused"),
    ],
)
def test_wrong_kernels_are_found_before_they_are_timed(tmp_path: Path, source: str, problem: str) -> None:
    work, module = work_of(Apply("relu", (Read(Source("in0", (8,))),)), source)
    profile = Profile(tmp_path / "p.db", "device", MODE)
    failures = profiling.measure(Bundle("m", "sm_90", (work,), (module,)), HostDevice(), profile)
    assert len(failures) == bool(problem)
    assert problem in "".join(failures)
    assert bool(profile.failure(work.signature, work.implementation)) == bool(problem)
    assert profiling.measure(Bundle("m", "sm_90", (work,), (module,)), HostDevice(), profile) == []  # not again


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"nothing of the kind")
    for read in (Bundle.read, Program.read):
        with pytest.raises(InputRejected, match="is not such a file"):
            read(path)
        with pytest.raises(InputRejected, match="cannot read"):
            read(tmp_path / "missing")
    work, module = work_of(Apply("relu", (Read(Source("in0", (8,))),)), "")
    for broken, message in (
        (replace(work, module=7), "is broken"),
        (replace(work, threads=4096), "is broken"),
        (replace(work, arguments=((-1,),)), "is broken"),
    ):
        Bundle("m", "sm_90", (broken,), (module,)).write(path)
        with pytest.raises(InputRejected, match=message):
            Bundle.read(path)
    Program("m", "sm_90", {"x": (8,)}, (), {"y": "nowhere"}, {}, ()).write(path)
    with pytest.raises(InputRejected, match="nothing fills the output buffer 'nowhere'"):
        Program.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", '{"schema": 99}')
    with pytest.raises(InputRejected, match="another version"):
        Bundle.read(path)
    for body in ("[]", '[["View", 5, "x"]]', '[["Nothing"]]', "{"):
        with pytest.raises(InputRejected, match="kernel body"):
            plain.from_json(body)


def test_inputs_are_checked() -> None:
    program = Program("m", "sm_90", {"x": (2, 3)}, (), {"y": "x"}, {}, ())
    runner = Runner(program, HostDevice())
    assert runner.run(random_inputs(program))["y"].shape == (2, 3)
    with pytest.raises(InputRejected, match="'x' is missing"):
        runner.run({})
    with pytest.raises(InputRejected, match=r"input 'x' has shape \[2, 3\], not \[3\]"):
        runner.run({"x": np.zeros(3)})


def test_without_torch_or_gpu_it_says_so(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    except ImportError:
        pass
    assert main(["profile", str(files / "model.bundle"), "-o", str(tmp_path / "gpu.db")]) == 6
    assert "torch" in capsys.readouterr().err


def test_options_of_the_processor_are_refused_for_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    asked = ["optimize", str(model), "--target", "cuda:sm_90"]
    assert main([*asked, "--cost", "traffic", "--peak-memory", "1M"]) == 2
    assert "--cost, --peak-memory cannot be used with --target cuda:sm_90" in capsys.readouterr().err
