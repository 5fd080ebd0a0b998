"""The command line as users see it: exit codes, one-line errors, files, output."""

import json
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from egraph_opt import errors
from egraph_opt.cli import COMMANDS, main
from egraph_opt.runtime.progress import Progress
from egraph_opt.runtime.report import Report


@dataclass
class FakeResult:
    """What the pipeline returns, as far as the command line uses it."""

    report: Report

    def save(self, path: Path) -> None:
        path.write_bytes(b"optimized")


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for egraph_opt.pipeline that records its options; `failure` is raised where set."""
    state = types.SimpleNamespace(options=None, failure=None)

    def optimize(model: Path, **options: object) -> FakeResult:
        state.options = {"model": model, **options}
        options["progress"](Progress("saturate", "120 e-nodes", 1, 4))
        options["progress"](Progress("saturate", "250 e-nodes", 4, 4))
        if state.failure is not None:
            raise state.failure
        return FakeResult(Report(model.name, unchanged_because="nothing faster was found"))

    module = types.ModuleType("egraph_opt.pipeline")
    module.optimize = optimize
    monkeypatch.setitem(sys.modules, "egraph_opt.pipeline", module)
    return state


def test_optimize_writes_and_prints(save_model, pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model()
    report = model.with_name("r.json")
    assert main(["optimize", str(model), "--report", str(report)]) == 0
    captured = capsys.readouterr()
    assert model.with_name("model.opt.onnx").read_bytes() == b"optimized"
    assert "kept unchanged: nothing faster was found" in captured.out
    assert captured.out.splitlines()[-1] == f"  written: {model.with_name('model.opt.onnx')}"
    assert [line[11:] for line in captured.err.splitlines()] == [
        "saturate 1/4: 120 e-nodes",
        "saturate 4/4: 250 e-nodes",
    ]
    assert Report.from_dict(json.loads(report.read_text())).model == "model.onnx"
    defaults = {"target": "cpu", "portable": False, "verify": 1, "time_limit": None, "seed": 0, "threads": None}
    assert pipeline.options.items() >= {"model": model, **defaults, "cost": "measured", "profile_db": None}.items()


def test_optimize_passes_options_on(save_model, pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model()
    output = model.with_name("fast.onnx")
    words = shlex.split(
        "--portable --verify 3 --time-limit 2.5 --seed 7 --threads 2 --cost static --profile-db p.db -q"
        " --rules -bias,+mine.py --fp strict --memory-limit 1.5G --shape N=8 --runtime auto --prove"
    )
    assert main(["optimize", str(model), "-o", str(output), *words]) == 0
    assert output.read_bytes() == b"optimized"
    assert capsys.readouterr() == ("", "")
    del pipeline.options["progress"]
    assert pipeline.options == {
        "model": model,
        "target": "cpu",
        "portable": True,
        "verify": 3,
        "time_limit": 2.5,
        "memory_limit": 3 << 29,
        "seed": 7,
        "threads": 2,
        "cost": "static",
        "profile_db": Path("p.db"),
        "rules": "-bias,+mine.py",
        "fp": "strict",
        "shapes": {"N": 8},
        "runtime": "auto",
        "executor": None,
        "jobs": None,
        "peak_memory": None,
        "prove": True,
        "slowest": 3.0,
        "trials": 0,
        "tuning_seconds": 300.0,
    }


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (errors.InputRejected("node 'a\nb' is cyclic"), 3, "node 'a b' is cyclic"),
        (errors.VerificationFailed("output y differs"), 4, "output y differs"),
        (errors.LimitReached("out of time"), 5, "out of time"),
        (errors.BackendMissing("tvm is not installed"), 6, "tvm is not installed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 5, "out of memory"),
        (ModuleNotFoundError("No module named 'tvm'", name="tvm"), 6, "tvm is not installed"),
        (ModuleNotFoundError("No module named 'egraph_opt.x'", name="egraph_opt.x"), 1, "internal error"),
        (OSError(28, "No space left on device", "m.onnx"), 5, "No space left on device: m.onnx"),
        (PermissionError(13, "Permission denied", "m.onnx"), 2, "Permission denied: m.onnx"),
        (IndexError("list index"), 1, "internal error, please report it"),
    ],
)
def test_failures_are_one_line_and_write_nothing(
    save_model, pipeline, capsys: pytest.CaptureFixture[str], failure: BaseException, code: int, message: str
) -> None:
    model = save_model()
    pipeline.failure = failure
    assert main(["optimize", str(model), "-q"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"egraph-opt: error: {message}")
    assert captured.err.count("\n") == 1
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_traceback_with_vv(save_model, pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.failure = IndexError("list index")
    assert main(["optimize", str(save_model()), "-q", "-vv"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("egraph-opt: error: internal error")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["optimize"], 2, "the following arguments are required: MODEL.onnx (see egraph-opt optimize --help)"),
        (["optimise"], 2, "argument COMMAND: invalid choice: 'optimise'"),
        (["optimize", "none.onnx"], 3, "none.onnx does not exist"),
        (["optimize", "."], 3, ". is not a file"),
        (
            ["optimize", "m.onnx", "--time-limit", "0"],
            2,
            "argument --time-limit: 0 is not a positive number of seconds",
        ),
        (["optimize", "m.onnx", "--verify", "-1"], 2, "argument --verify: -1 is below 0"),
        (["optimize", "m.onnx", "--target", "tpu"], 2, "argument --target: invalid choice: 'tpu'"),
        (["check", "a.onnx", "b.onnx"], 3, "a.onnx does not exist"),
        (["check", "a.onnx", "b.onnx", "--shape", "x"], 2, "argument --shape: 'x' is not of the form"),
        (["check", "a.onnx", "b.onnx", "--shape", "x=1,-2"], 2, "argument --shape: 'x=1,-2' has a negative length"),
        (["derive", "conv", "--kernel", "3;3"], 2, "argument --kernel: '3;3' is not a list of whole numbers"),
    ],
)
def test_usage_errors(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"egraph-opt: error: {message}")
    assert captured.err.count("\n") == 1


def test_unwritable_output_is_found_before_the_work(save_model, pipeline, capsys) -> None:
    model = save_model()
    assert main(["optimize", str(model), "-o", str(model.parent / "nowhere" / "o.onnx")]) == 2
    assert main(["optimize", str(model), "--report", str(model)]) == 2
    assert pipeline.options is None
    assert "would replace" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command.SUMMARY in text
        assert main([command.__name__.rpartition(".")[2], "--help"]) == 0
        assert "examples:" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert "egraph-opt " in capsys.readouterr().out


def test_check_equal(save_model, home, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save_model("a.onnx", batch="n"), save_model("b.onnx", batch="n", scale=1 + 1e-7)
    assert main(["check", str(a), str(b), "--runs", "2", "--seed", "4", "--shape", "n=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "output"
    assert [line.split()[:4] for line in lines[1:3]] == [["y", "float32", "5x3", "4"], ["y", "float32", "5x3", "5"]]
    assert all(line.endswith("equal") for line in lines[1:3])
    assert lines[-1] == "equal on 2 random inputs (seed 4)"


def test_check_different(save_model, home, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save_model("a.onnx", batch="n"), save_model("b.onnx", batch="n", scale=1.01)
    assert main(["check", str(a), str(b), "--shape", "n=5", "--seed", "3"]) == 4
    out = capsys.readouterr().out
    assert "DIFFERENT" in out
    assert out.splitlines()[-1] == f"different; replay: egraph-opt check {a} {b} --seed 3 --shape n=5"


def test_check_of_different_signatures(save_model, home, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save_model("a.onnx"), save_model("b.onnx", output="z")
    assert main(["check", str(a), str(b)]) == 4
    assert "the outputs differ: (y: tensor(float)) and (z: tensor(float))" in capsys.readouterr().err


def test_kernel_libraries_of_strangers_are_not_loaded(save_model, home, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save_model("a.onnx"), save_model("b.onnx")
    b.with_name("b.kernels.so").write_bytes(b"code")
    assert main(["check", str(a), str(b)]) == 3
    assert "was not built by this user on this machine; pass --trust-kernels" in capsys.readouterr().err


def test_bench(save_model, home, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save_model("a.onnx"), save_model("b.onnx")
    assert main(["bench", str(a), "--rounds", "2", "--threads", "1"]) == 0
    assert "speed-up" not in capsys.readouterr().out
    assert main(["bench", str(a), str(b), "--rounds", "2", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "median", "ms", "quartiles", "ms"]
    assert [line.split()[0] for line in lines[1:3]] == [str(a), str(b)]
    assert lines[3].startswith("speed-up ")


def test_doctor(home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from egraph_opt.backends import environment

    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "onnxruntime", "C compiler", "processor", "threads", "TVM target", "cache"):
        assert f"\n{name} " in f"\n{out}"
    assert f"{home / '.cache' / 'egraph-opt'}: 0 files" in out
    monkeypatch.setattr(environment, "find_compiler", lambda: None)
    monkeypatch.setattr(environment, "tvm_target", lambda: "missing: ImportError: no tvm")
    assert main(["doctor"]) == 6
    captured = capsys.readouterr()
    assert "only portable models can be written" in captured.out
    assert captured.err.startswith("egraph-opt: error: TVM cannot be used")


def test_derive_passes_only_given_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, object] = {}

    def derive_operator(operator: str, **options: object) -> str:
        seen.update(operator=operator, **options)
        return "MatMul + kernel"

    module = types.ModuleType("egraph_opt.derive")
    module.OPERATORS = ("conv", "pool")
    module.derive_operator = derive_operator
    monkeypatch.setitem(sys.modules, "egraph_opt.derive", module)
    words = "derive conv --channels 6,10 --size 9,7 --kernel 5,3 --pads 2,0,2,2 --groups 2 --output-padding 1,0"
    assert main(shlex.split(words)) == 0
    assert capsys.readouterr().out == "MatMul + kernel\n"
    assert seen == {
        "operator": "conv",
        "channels": (6, 10),
        "size": (9, 7),
        "kernel": (5, 3),
        "pads": (2, 0, 2, 2),
        "rules": "",
        "fp": "default",
        "groups": 2,
        "output_padding": (1, 0),
    }
    assert main(["derive", "softmax"]) == 2
    assert capsys.readouterr().err == "egraph-opt: error: unknown operator softmax; known: conv, pool\n"
