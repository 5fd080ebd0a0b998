"""What it costs to call two runtimes in turns in one process: `python -m bench.thread_pools`.

A plan that took each operator from the runtime that is fastest at it would call onnxruntime and OpenVINO in turns. This
times two models alone and in turns, onnxruntime running the first and OpenVINO the second, under several settings of
their thread pools, each in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

# Settings of onnxruntime (threads, session entries) and of OpenVINO.
SETTINGS: Mapping[str, tuple[dict[str, str], dict[str, str]]] = {
    "as they are": ({}, {}),
    "onnxruntime does not spin": ({"session.intra_op.allow_spinning": "0"}, {}),
    "onnxruntime stops spinning after a run": ({"session.force_spinning_stop": "1"}, {}),
    "OpenVINO with one thread": ({}, {"INFERENCE_NUM_THREADS": "1"}),
    "OpenVINO with one thread, onnxruntime does not spin": (
        {"session.intra_op.allow_spinning": "0"},
        {"INFERENCE_NUM_THREADS": "1"},
    ),
    "OpenVINO not pinned, onnxruntime stops spinning": (
        {"session.force_spinning_stop": "1"},
        {"ENABLE_CPU_PINNING": "NO"},
    ),
}
ROUNDS, CALLS = 15, 20


def models() -> tuple[ModelProto, ModelProto]:
    """Some tens of microseconds each: a matrix product, which onnxruntime is good at, and a transposed convolution."""
    draw = np.random.default_rng(0)
    weights = [draw.standard_normal(shape, dtype=np.float32) for shape in ((512, 512), (64, 32, 4, 4))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    shapes = [([128, 512], [128, 512]), ([1, 64, 16, 16], [1, 32, 32, 32])]
    made = []
    for node, weight, (before, after) in zip(nodes, weights, shapes, strict=True):
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", before), ("y", after))]
        graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
        made.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return made[0], made[1]


def measure(name: str, threads: int) -> dict[str, float]:
    """Milliseconds a call: of each alone and in turns;."""
    import onnxruntime

    from egraph_opt.backends.openvino_runtime import import_openvino

    openvino = import_openvino()
    entries, properties = SETTINGS[name]
    product, convolution = models()
    draw = np.random.default_rng(1)
    inputs = [draw.standard_normal(shape, dtype=np.float32) for shape in ((128, 512), (1, 64, 16, 16))]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(product.SerializeToString(), options, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    given = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}
    compiled = core.compile_model(core.read_model(convolution.SerializeToString(), b""), "CPU", given | properties)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(inputs[1], shared_memory=True))

    def one() -> None:
        session.run(None, {"x": inputs[0]})

    def other() -> None:
        request.infer()

    found = {"product": _milliseconds(one), "convolution": _milliseconds(other)}
    found["in turns"] = _milliseconds(lambda: (one(), other()))
    return found


def _milliseconds(call: Callable[[], Any]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        samples = []
        for _ in range(CALLS):
            begun = time.perf_counter()
            call()
            samples.append(time.perf_counter() - begun)
        rounds.append(statistics.median(samples))
    return statistics.median(rounds) * 1e3


def main() -> int:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(prog="python -m bench.thread_pools", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads of each runtime (default: %(default)s)")
    parser.add_argument("--setting", choices=tuple(SETTINGS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setting is not None:
        print(json.dumps(measure(options.setting, options.threads)))
        return 0
    print(f"{'':52} {'product':>9} {'convolution':>12} {'sum':>7} {'in turns':>9}")
    for name in SETTINGS:
        command = [sys.executable, "-m", "bench.thread_pools", "--threads", str(options.threads), "--setting", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
        found = json.loads(done.stdout)
        total = found["product"] + found["convolution"]
        turns = found["in turns"]
        print(
            f"{name:52} {found['product']:9.3f} {found['convolution']:12.3f} {total:7.3f} {turns:9.3f}"
            f"  {turns / total:.2f}x",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
