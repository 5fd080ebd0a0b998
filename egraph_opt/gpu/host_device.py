"""A stand-in for a GPU: library calls by numpy, CUDA kernels compiled for the processor; for checks, not for speed."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.gpu.device import called
from egraph_opt.gpu.files import LibraryCall, Module, Work
from egraph_opt.ir import library, moves
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.interpreter import FloatArithmetic

_SIGNATURE = re.compile(r'extern "C" __global__ void .*?(\w+)\(([^)]*)\) \{')


class HostDevice:
    """The processor in the place of a GPU. Kernels need g++."""

    key = "host, in the place of a GPU"

    def __init__(self, architecture: str = "") -> None:
        self.key = f"{architecture}; {HostDevice.key}".removeprefix("; ")
        self._modules: list[Module] = []
        self._libraries: dict[int, ctypes.CDLL] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="egraph-opt-")

    def load(self, modules: Sequence[Module]) -> None:
        """Keep the modules; what a kernel needs is compiled when it runs."""
        self._modules, self._libraries = list(modules), {}

    def upload(self, value: np.ndarray) -> Any:
        return np.array(value, dtype=np.float32, order="C")

    def download(self, array: Any) -> np.ndarray:
        return np.array(array)

    def reshape(self, array: Any, extents: Extents) -> Any:
        return array.reshape(extents)

    def arena(self, size: int) -> Any:
        # A multiple of the width of the widest loads.
        return np.full(-(-size // 16) * 4, np.nan, np.float32)

    def part(self, arena: Any, offset: int, extents: Extents) -> Any:
        return arena[offset // 4 : offset // 4 + prod(extents)].reshape(extents)

    def fills(self, work: Work) -> bool:
        return True

    def work(self, work: Work, arguments: Sequence[Any], into: Any = None) -> Any:
        result = np.full(work.result, np.nan, np.float32) if into is None else into.reshape(work.result)
        if not work.is_kernel:
            with np.errstate(all="ignore"):
                result[...] = called(work, arguments, _call)
            return result
        launch = getattr(self._library(work.module), f"launch_{work.kernel}")
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*arguments, result)]
        launch((ctypes.c_void_p * len(pointers))(*pointers), work.blocks, work.threads)
        return result

    def captured(self, run: Callable[[], None]) -> Callable[[], None]:
        return run

    def seconds(self, run: Callable[[], None], repeats: int) -> float:
        begun = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - begun) / repeats

    def _library(self, number: int) -> ctypes.CDLL:
        if number not in self._libraries:
            self._libraries[number] = self._compiled(self._modules[number].source, f"module{number}")
        return self._libraries[number]

    def _compiled(self, source: str, name: str) -> ctypes.CDLL:
        compiler = shutil.which("g++")
        if compiler is None:
            raise BackendMissing("no g++ on the search path; it stands in for a GPU")
        kernels = re.sub(r"alignas\(\d+\) ", "", source[source.index('extern "C"') :])
        folder = Path(self._folder.name)
        header = resources.files("egraph_opt.gpu").joinpath("cuda_on_cpu.h").read_text()
        (folder / f"{name}.cpp").write_text("\n".join([header, kernels, *_launchers(kernels)]))
        # Checked jumps may not lead to another stack.
        command = [
            compiler,
            "-std=c++17",
            "-O2",
            "-U_FORTIFY_SOURCE",
            "-shared",
            "-fPIC",
            "-o",
            f"{name}.so",
            f"{name}.cpp",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EgraphOptError(f"g++ refused the code of a kernel: {done.stderr.strip()[:2000]}")
        return ctypes.CDLL(str(folder / f"{name}.so"))


def _call(call: LibraryCall, arguments: Sequence[Any]) -> Any:
    attributes, arithmetic = library.parse_attributes(call.attributes), FloatArithmetic(np.float32)
    if call.operator in moves.MOVES:
        return moves.evaluate(call.operator, attributes, arguments, call.extents).astype(np.float32)
    return library.evaluate(call.operator, attributes, arguments, call.extents, arithmetic)


def _launchers(kernels: str) -> list[str]:
    """A function for each kernel that runs all its threads."""
    found = []
    ends = [match.start() for match in _SIGNATURE.finditer(kernels)] + [len(kernels)]
    for match, end in zip(_SIGNATURE.finditer(kernels), ends[1:], strict=True):
        name, count = match[1], match[2].count("*")
        arguments = ", ".join(f"(float *)p[{i}]" for i in range(count))
        waits = "true" if re.search("__syncthreads|__shfl_xor_sync", kernels[match.start() : end]) else "false"
        found.append(
            f'extern "C" void launch_{name}(void **p, int blocks, int threads) {{'
            f" launch([=] {{ {name}({arguments}); }}, blocks, threads, {waits}); }}"
        )
    return found
