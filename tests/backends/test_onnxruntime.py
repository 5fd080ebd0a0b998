"""The wrapper of onnxruntime: loading, random inputs, errors."""

from pathlib import Path

import numpy as np
import pytest

from egraph_opt.backends.onnxruntime import (
    ValueSpec,
    caller,
    input_specs,
    make_session,
    output_specs,
    random_inputs,
    run,
)
from egraph_opt.errors import InputRejected


def test_session_runs(save_model) -> None:
    path = save_model()
    for session in (
        make_session(path),
        make_session(path.read_bytes(), optimize=False, threads=1),
        make_session(path, threads=2, spin=False),
    ):
        assert input_specs(session) == (ValueSpec("x", "tensor(float)", (2, 4)),)
        assert output_specs(session) == (ValueSpec("y", "tensor(float)", (2, 3)),)
        inputs = random_inputs(input_specs(session), seed=3)
        (output,) = run(session, inputs)
        assert output.shape == (2, 3)
        assert (output >= 0).all()
        (again,) = caller(session, inputs)()
        np.testing.assert_array_equal(output, again)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08\x12\x00"])
def test_broken_models_are_rejected(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InputRejected, match=r"broken\.onnx does not load in onnxruntime: "):
        make_session(path)
    assert capfd.readouterr() == ("", "")


def test_missing_kernel_library(save_model, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match=r"model\.onnx does not load"):
        make_session(save_model(), kernel_library=tmp_path / "none.so")


def test_random_inputs_are_reproducible() -> None:
    specs = [
        ValueSpec("a", "tensor(float)", ("batch", 3)),
        ValueSpec("b", "tensor(int64)", (None, "batch")),
        ValueSpec("c", "tensor(float16)", ()),
        ValueSpec("d", "tensor(bool)", (4,)),
        ValueSpec("e", "tensor(double)", (0, 2)),
        ValueSpec("f", "tensor(string)", (2,)),
    ]
    one, other = (
        random_inputs(specs, seed=5, shapes={"batch": [7]}),
        random_inputs(specs, seed=5, shapes={"batch": [7]}),
    )
    assert {name: (value.dtype.name, value.shape) for name, value in one.items()} == {
        "a": ("float32", (7, 3)),
        "b": ("int64", (1, 7)),
        "c": ("float16", ()),
        "d": ("bool", (4,)),
        "e": ("float64", (0, 2)),
        "f": ("object", (2,)),
    }
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert not np.array_equal(one["a"], random_inputs(specs, seed=6, shapes={"batch": [7]})["a"])
    assert random_inputs(specs, shapes={"a": [2, 3]})["a"].shape == (2, 3)


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        (ValueSpec("x", "tensor(float)", (2, 3)), {"x": [2, 4]}, r"input x has shape \[2, 3\], not \[2, 4\]"),
        (ValueSpec("x", "tensor(float)", (2, 3)), {"x": [2]}, r"input x has shape"),
        (ValueSpec("x", "tensor(float)", ("n",)), {"y": [2]}, r"neither an input nor a symbolic dimension \(x, n\)"),
        (ValueSpec("x", "tensor(float)", ("n",)), {"n": [2, 3]}, "neither an input nor a symbolic dimension"),
        (ValueSpec("x", "seq(tensor(float))", ()), {}, "no random values can be drawn"),
        (ValueSpec("x", "tensor(float)", (2**40,)), {}, "too large to draw"),
        (ValueSpec("x", "tensor(float)", (-1,)), {}, "negative dimension"),
    ],
)
def test_inputs_that_cannot_be_drawn(spec: ValueSpec, shapes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        random_inputs([spec], shapes=shapes)


def test_failing_run_is_one_line(save_model) -> None:
    session = make_session(save_model())
    with pytest.raises(InputRejected, match="the model does not run: ") as caught:
        run(session, {"x": np.zeros((2, 5), np.float32)})
    assert "\n" not in str(caught.value)
