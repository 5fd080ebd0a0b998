"""An NVIDIA GPU: library calls by torch, kernels by the CUDA driver, both in order on torch's current stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.gpu import torch_library
from egraph_opt.gpu.device import called
from egraph_opt.gpu.files import LibraryCall, Module, Work
from egraph_opt.ir.expr import Extents

# Runs before a capture, as torch asks for: libraries choose and allocate what they need.
WARM_RUNS = 3
# What the widest loads of kernels are aligned to.
VECTOR_BYTES = 16


class CudaDevice:
    """The current CUDA device. ``tf32`` allows products of float32 with 10 bits of mantissa, as many do by default.

    Raises BackendMissing without torch or without a GPU that it can use.
    """

    def __init__(self, architecture: str, *, tf32: bool = False) -> None:
        try:
            import torch
        except ImportError as error:
            raise BackendMissing(f"torch is needed on the GPU machine: {error}") from error
        if not torch.cuda.is_available():
            raise BackendMissing("torch finds no GPU here")
        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        major, minor = torch.cuda.get_device_capability()
        if architecture.removeprefix("sm_").rstrip("af") != f"{major}{minor}":
            raise EgraphOptError(f"the kernels are for {architecture}, this GPU is sm_{major}{minor}")
        precision = "TF32" if tf32 else "float32"
        self.key = (
            f"{architecture}; {torch.cuda.get_device_name()}; torch {torch.__version__}; CUDA {torch.version.cuda};"
            f" {precision}"
        )
        self._one = torch.ones(1, device="cuda")  # makes the context that the driver's calls need
        self._driver = _Driver()
        self._modules: list[ctypes.c_void_p] = []
        self._functions: dict[tuple[int, str], ctypes.c_void_p] = {}

    def load(self, modules: Sequence[Module]) -> None:
        """Load machine code; kernels are found when they run."""
        self._modules = [self._driver.load(module.cubin) for module in modules]
        self._functions = {}

    def upload(self, value: np.ndarray) -> Any:
        return self._torch.from_numpy(np.array(value, dtype=np.float32, order="C")).cuda()

    def download(self, array: Any) -> np.ndarray:
        return np.asarray(array.cpu().numpy())

    def reshape(self, array: Any, extents: Extents) -> Any:
        return array.reshape(extents)

    def arena(self, size: int) -> Any:
        return self._torch.empty(size, dtype=self._torch.uint8, device="cuda")

    def part(self, arena: Any, offset: int, extents: Extents) -> Any:
        return arena[offset : offset + 4 * prod(extents)].view(self._torch.float32).reshape(extents)

    def fills(self, work: Work) -> bool:
        return work.is_kernel or torch_library.fills(work.calls[-1].operator, work.calls[-1].attributes)

    def work(self, work: Work, arguments: Sequence[Any], into: Any = None) -> Any:
        if not work.is_kernel:
            try:
                return self._called(work, arguments, into)
            except RuntimeError as error:
                raise EgraphOptError(f"torch cannot do {work.signature}: {error}") from error
        key = work.module, work.kernel
        if key not in self._functions:
            self._functions[key] = self._driver.function(self._modules[work.module], work.kernel)
        result = self._torch.empty(work.result, device="cuda") if into is None else into.reshape(work.result)
        pointers = [array.data_ptr() for array in (*arguments, result)]
        stream = self._torch.cuda.current_stream().cuda_stream
        self._driver.launch(self._functions[key], work.blocks, work.threads, pointers, stream)
        return result

    def _called(self, work: Work, arguments: Sequence[Any], into: Any) -> Any:
        last = work.calls[-1]

        def call(each: LibraryCall, values: Sequence[Any]) -> Any:
            if each is last and into is not None:
                return torch_library.call_into(each.operator, each.attributes, values, into.reshape(each.extents))
            return torch_library.call(each.operator, each.attributes, values, each.extents, like=self._one)

        result = called(work, arguments, call).contiguous()
        taken = {array.untyped_storage().data_ptr() for array in arguments}
        placed = into is not None and result.data_ptr() == into.data_ptr()
        shared = not placed and result.untyped_storage().data_ptr() in taken
        # Kernels load whole vectors, which a part of a larger tensor may begin within.
        return result.clone() if shared or result.data_ptr() % VECTOR_BYTES else result

    def captured(self, run: Callable[[], None]) -> Callable[[], None]:
        """The run as one CUDA graph."""
        torch = self._torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay  # type: ignore[no-any-return]

    def seconds(self, run: Callable[[], None], repeats: int) -> float:
        torch = self._torch
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / repeats


class _Driver:
    """The few functions of the CUDA driver that load and launch kernels."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise BackendMissing(f"the CUDA driver cannot be loaded: {error}") from error

    def load(self, cubin: bytes) -> ctypes.c_void_p:
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), cubin)
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(
        self, function: ctypes.c_void_p, blocks: int, threads: int, pointers: Sequence[int], stream: int
    ) -> None:
        values = [ctypes.c_uint64(pointer) for pointer in pointers]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid = [ctypes.c_uint(n) for n in (blocks, 1, 1, threads, 1, 1, 0)]
        self._call("cuLaunchKernel", function, *grid, ctypes.c_void_p(stream), addresses, None)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise EgraphOptError(f"{name} failed: {(text.value or b'').decode() or status}")
