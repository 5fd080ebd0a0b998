"""A sample of the operator tests that onnx ships, optimized as a whole, every region replaced whether worth it or not.

``python -m tests.pipeline.test_onnx_backend`` goes through all of them, native and portable, as they are and with all
inputs but the first as weights.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from egraph_opt.backends.onnxruntime import make_session
from egraph_opt.backends.onnxruntime import run as run_session
from egraph_opt.errors import InputRejected
from egraph_opt.frontends import regions
from egraph_opt.pipeline import optimize
from egraph_opt.runtime.compare import compare_outputs

# Every so many cases are tested.
STRIDE = 14


def cases(stride: int, offset: int, *, constant: bool) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """Name, model and inputs; with ``constant`` all numeric inputs but the first are weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("onnx.backend.test.case.node").collect_testcases(None)
    for case in [case for case in found if case.data_sets][offset::stride]:
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        model.ir_version = min(model.ir_version, 13)
        feeds = {entry.name: _value(a) for entry, a in zip(model.graph.input, case.data_sets[0][0], strict=False)}
        for i in reversed(range(1, len(model.graph.input)) if constant else ()):
            name = model.graph.input[i].name
            if isinstance(feeds[name], np.ndarray) and feeds[name].dtype.kind in "biuf":
                model.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
                del model.graph.input[i]
        yield case.name, model, feeds


def _value(given: Any) -> Any:
    if isinstance(given, onnx.TensorProto):
        return numpy_helper.to_array(given)
    if isinstance(given, onnx.SequenceProto):
        return numpy_helper.to_list(given)
    if isinstance(given, onnx.OptionalProto):
        return numpy_helper.to_optional(given)
    return np.asarray(given) if isinstance(given, np.generic) else given


def problems(name: str, model: onnx.ModelProto, feeds: dict[str, Any], *, portable: bool) -> tuple[str, list[str]]:
    """ "skipped" where onnxruntime does not run the original, else "same" or "changed"; and what is wrong."""
    try:
        expected = run_session(make_session(model.SerializeToString(), threads=1, spin=False), feeds)
    except (InputRejected, TypeError):
        return "skipped", []
    result = optimize(model, cost="static", portable=portable, threads=1)
    found = run_session(result.session(), feeds)
    wrong = [f"{name}: {error}" for error in compare_outputs(expected, found) if not error.within]
    wrong += [f"{name}: {entry.reason}" for entry in result.report.reverted if "internal error" in entry.reason]
    return ("changed" if result.report.changed else "same"), wrong


@pytest.mark.parametrize(("portable", "constant"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_sample(monkeypatch, portable: bool, constant: bool) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    monkeypatch.setattr(regions, "_worthwhile", lambda *_: True)
    offset = 3 + 2 * portable + 4 * constant
    outcomes = [problems(*case, portable=portable) for case in cases(STRIDE, offset, constant=constant)]
    assert [text for _, wrong in outcomes for text in wrong] == []
    assert sum(kind == "changed" for kind, _ in outcomes) > 20
    assert sum(kind == "same" for kind, _ in outcomes) > 20


def main() -> int:
    """All cases; prints what is wrong and the totals."""
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"
    regions._worthwhile = lambda *_: True
    failures = 0
    for portable, constant in ((False, False), (True, False), (False, True), (True, True)):
        total: dict[str, int] = {}
        for case in cases(1, 0, constant=constant):
            kind, wrong = problems(*case, portable=portable)
            total[kind] = total.get(kind, 0) + 1
            failures += bool(wrong)
            print("".join(f"{text}\n" for text in wrong), end="", flush=True)
        print(
            f"{'portable' if portable else 'native'}{', weights' if constant else ''}: {total}, {failures} wrong so far"
        )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
