"""What the machine can do at most: float32 matrix products and copies, measured with the same number of threads."""

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bench.models.builder import GraphBuilder
from bench.timing import PAUSE_SECONDS, Worker

_SIDE = 1024
_TURNS = 5
_COPY_BYTES = 256 << 20


@dataclass(frozen=True)
class Ceilings:
    """Float32 GFLOP/s of onnxruntime's MatMul, and GiB/s read plus written by a copy in memory."""

    gemm_gflops: float
    copy_gib: float


def measure_ceilings(threads: int) -> Ceilings:
    """Measure both ceilings; a few seconds."""
    return Ceilings(_gemm_gflops(threads), _copy_gib(threads))


def _gemm_gflops(threads: int) -> float:
    graph = GraphBuilder("gemm")
    result = graph.linear(graph.input("input", (_SIDE, _SIDE)), _SIDE, _SIDE, bias=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gemm.onnx"
        onnx.save(graph.finish(result, (_SIDE, _SIDE)), path)
        with Worker(path, threads=threads) as worker:
            # The shortest of several turns: a ceiling is what the machine does when nothing disturbs it.
            seconds = []
            for _ in range(_TURNS):
                seconds.append(min(worker.measure(50)))
                time.sleep(PAUSE_SECONDS)
            return 2 * _SIDE**3 / min(seconds) / 1e9


def _copy_gib(threads: int) -> float:
    source = np.ones(_COPY_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    times = []
    for _ in range(2 * _TURNS):
        # numpy releases the interpreter lock while it copies.
        copies = [threading.Thread(target=np.copyto, args=(to, of)) for of, to in parts]
        start = time.perf_counter()
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.join()
        times.append(time.perf_counter() - start)
    return 2 * _COPY_BYTES / min(times) / 2**30
