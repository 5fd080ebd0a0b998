"""``egraph-opt kernel``: what an optimized model tells of its kernels, and other schedules of them."""

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from egraph_opt.backends.cuda_build import find_nvcc
from egraph_opt.backends.environment import working_compiler
from egraph_opt.cli import main
from egraph_opt.errors import InputRejected
from egraph_opt.extract.alternatives import signature
from egraph_opt.extract.profile import KERNEL, Measurement, Profile
from egraph_opt.frontends.onnx_metadata import entry, metadata, put
from egraph_opt.ir.terms import Compute
from egraph_opt.kernels import KEY, attach, unpacked
from tests.pipeline.support import build, node, static

pytestmark = pytest.mark.skipif(working_compiler()[0] is None, reason="kernels need a C compiler")
OWN = """
def wide(s):
    *_, last = s.get_loops(s.get_sblock("out"))
    s.vectorize(s.split(last, [None, 16])[1])

def wrong(s):
    raise ValueError("nothing doing")
"""


@pytest.fixture(scope="module")
def optimized(tmp_path_factory):
    """A model with one kernel, as a file."""
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("Add", "t b", "s"), node("Tanh", "s", "y")]
    model = build(nodes, {"x": (64, 48)}, {"y": (48, 64)}, {"b": [[0.5]] * 48})
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype("float32")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "b"))
    path = tmp_path_factory.mktemp("kernel") / "model.opt.onnx"
    static(model).save(path)
    onnx.save(model, path.with_name("model.onnx"))
    (path.parent / "own.py").write_text(OWN)
    return path


def test_the_list_has_every_kernel_with_its_algebra(optimized, capsys):
    assert main(["kernel", "show", str(optimized)]) == 0
    shown = capsys.readouterr().out
    (record,) = unpacked(metadata(optimized, KEY))
    assert f"1 {record.name}" in shown
    assert "tanh(" in shown
    assert record.name in {made.op_type for made in onnx.load(optimized).graph.node}
    assert record.kernel.name == record.name  # all that it is made of is there


def test_one_kernel_with_its_loops_and_assembly(optimized, capsys):
    (record,) = unpacked(metadata(optimized, KEY))
    assert main(["kernel", "show", str(optimized), record.name[:6], "--asm"]) == 0
    shown = capsys.readouterr().out
    assert "in0 [64, 48]" in shown
    assert f"def {record.name}(" in shown
    assert ".text" in shown


def test_a_kernel_that_a_trace_arranges(optimized, capsys, tmp_path: Path):
    (record,) = unpacked(metadata(optimized, KEY))
    trace = '[[["GetSBlock",[],["out","main"],["b0"]],["GetLoops",["b0"],[],["l1","l2"]],["Parallel",["l1"],[],[]]],[]]'
    kernel = replace(record.kernel, schedule=trace)
    model = onnx.load(optimized)
    for made in model.graph.node:
        made.op_type = kernel.name if made.op_type == record.name else made.op_type
    profile = Profile(None, "device")
    profile.add([Measurement(signature(Compute(kernel.body)), KERNEL + trace, (0.25,))])
    attach(model, [kernel], profile)
    onnx.save(model, tmp_path / "tuned.onnx")
    (found,) = unpacked(metadata(tmp_path / "tuned.onnx", KEY))
    assert (found.kernel, found.seconds) == (kernel, 0.25e-3)
    assert main(["kernel", "show", str(tmp_path / "tuned.onnx"), "1"]) == 0
    shown = capsys.readouterr().out
    assert "trace of 3 instructions; 250 us measured + 2 us per step\n" in shown
    assert "sch.parallel(loop=l1)" in shown
    assert "T.parallel(48)" in shown
    assert main(["kernel", "show", str(tmp_path / "tuned.onnx")]) == 0
    assert re.search(r" 1 +250 us measured \+ 2 us per step +100% +trace of 3", capsys.readouterr().out)
    assert main(["kernel", "schedule", str(tmp_path / "tuned.onnx"), "1", "-o", str(tmp_path / "trace.json")]) == 0
    assert (tmp_path / "trace.json").read_text().strip() == trace


def test_a_gpu_kernel(optimized, capsys):
    assert main(["kernel", "show", str(optimized), "1", "--target", "cuda:sm_90"]) == 0
    assert (".target sm_90" if find_nvcc() else 'extern "C"') in capsys.readouterr().out


def test_a_model_that_was_not_optimized_shows_what_it_would_get(optimized, capsys):
    assert main(["kernel", "show", str(optimized.with_name("model.onnx"))]) == 0
    assert "tanh(" in capsys.readouterr().out


def test_another_schedule_is_checked_timed_and_kept(optimized, capsys, tmp_path: Path):
    one, trace = [str(optimized), "1"], tmp_path / "trace.json"
    own = str(optimized.parent / "own.py")
    assert main(["kernel", "schedule", *one]) == 0
    assert 'T.sblock("out")' in capsys.readouterr().out
    assert main(["kernel", "schedule", *one, "--function", f"{own}:wide", "-o", str(trace), "--threads", "1"]) == 0
    assert "yours computes the same and takes" in capsys.readouterr().out
    assert "Vectorize" in [row[0] for row in json.loads(trace.read_text())[0]]
    assert main(["kernel", "schedule", *one, "--trace", str(trace), "--threads", "1"]) == 0
    assert main(["kernel", "schedule", *one, "--schedule", "vector=1", "--threads", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["schedule", "MODEL", "k_none"], 2, "no kernel is called 'k_none'; known: k_"),
        (["schedule", "MODEL", "1", "--function", "OWN:wrong"], 2, "raised ValueError: nothing doing"),
        (["schedule", "MODEL", "1", "--function", "OWN:wid"], 2, "did you mean wide?"),
        (["schedule", "MODEL", "1", "--schedule", "vector=9"], 2, "names something this kernel lacks"),
        (["schedule", "MODEL", "1", "--trace", "OWN"], 3, "not a schedule trace"),
        (["schedule", "MODEL", "1", "--trace", "ALIEN"], 4, "does not fit"),
        (["schedule", "MODEL", "1", "-o", "OUT"], 2, "is no trace"),
        (["show", "MODEL", "--asm"], 2, "name it"),
        (["show", "MODEL", "1", "--target", "tpu"], 2, "unknown target 'tpu'"),
        (["show", "OWN"], 3, "is no ONNX model"),
    ],
)
def test_errors_say_what_is_wrong(optimized, capsys, tmp_path, arguments, code, message):
    alien = tmp_path / "alien.json"
    alien.write_text('[[["GetSBlock",[],["stage9","main"],["b0"]]],[]]')
    places = {"MODEL": optimized, "OWN": optimized.parent / "own.py", "ALIEN": alien, "OUT": tmp_path / "out.json"}
    words = [next((w.replace(n, str(p)) for n, p in places.items() if n in w), w) for w in arguments]
    assert main(["kernel", *words]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[", "{}", "[1]", "[[]]", '[{"name": "k"}]', '[{"arguments": 1}]'])
def test_damaged_records_are_refused(content):
    for text in (content, base64.b64encode(zlib.compress(content.encode())).decode()):
        with pytest.raises(InputRejected):
            unpacked(text)


def test_no_kernels(tmp_path, capsys):
    path = tmp_path / "plain.onnx"
    onnx.save(build([node("Abs", "x", "y")], {"x": (2,)}, {"y": (2,)}), path)
    assert main(["kernel", "show", str(path)]) == 0
    assert "no kernels" in capsys.readouterr().out
    model = onnx.load(path)
    put(model, KEY, "x")
    assert entry(model, KEY) == "x"
