"""CUDA kernels compiled without a GPU: body terms to CUDA source by TVM, and to machine code by nvcc."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx
from tvm.target import Target
from tvm.tirx.build import codegen_build, split_host_device_mods

from egraph_opt.backends.cuda_lower import Launch, cuda_module
from egraph_opt.backends.cuda_schedule import CudaSchedule
from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.gpu.files import Module, Resources
from egraph_opt.ir import extensions
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Source, Tensor, show

# Bumped whenever the code written for a body changes, so that profiles of old code are not used.
CODE_VERSION = 2
# Compiled together by one run of nvcc, most of whose time is its start.
BATCH = 16
# What the code of a kernel begins with, after the preamble.
_BEGIN = 'extern "C"'


@dataclass(frozen=True)
class CudaKernel:
    """A body over sources ``in0, in1, …`` (see program.kernel_signature), its sources in order, and a schedule."""

    body: Tensor
    inputs: tuple[Source, ...]
    schedule: CudaSchedule

    @cached_property
    def name(self) -> str:
        """``k_`` and a hash of the content; model texts never get into it."""
        signature = ";".join(f"{source.name}{list(source.extents)}" for source in self.inputs)
        content = f"cuda {CODE_VERSION}|{show(self.body)}|{signature}|{self.schedule}|{extensions.identity(self.body)}"
        return "k_" + hashlib.sha256(content.encode()).hexdigest()[:20]

    @property
    def arguments(self) -> tuple[Extents, ...]:
        return tuple(source.extents for source in self.inputs)


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ of one kernel, ``extern "C"`` under ``name`` with pointers to float32: inputs in order, output last."""

    name: str
    code: str
    launch: Launch


def cuda_source(kernel: CudaKernel, architecture: str) -> CudaSource:
    """The source of a kernel for an architecture such as ``sm_90``; no GPU and no CUDA toolkit are needed.

    Raises EgraphOptError for a body that has no CUDA form.
    """
    target = Target({"kind": "cuda", "arch": architecture}, host={"kind": "llvm"})
    module, launch = cuda_module(kernel.name, kernel.body, kernel.inputs, kernel.schedule)
    # Only the passes that turn a finished loop nest into code: the code is final, with its barriers, and TVM's
    # simplifier takes x * 0 for 0.
    passes = tirx.transform
    steps = [passes.BindTarget(target), passes.AnnotateEntryFunc(), passes.SplitHostDevice(), passes.MakePackedAPI()]
    _, device = split_host_device_mods(tvm.transform.Sequential(steps)(module))
    ((device_target, functions),) = device.items()
    code = codegen_build(passes.LowerIntrin()(functions), device_target).inspect_source()
    return CudaSource(kernel.name, _named(code, kernel, functions), launch)


def _named(code: str, kernel: CudaKernel, functions: Any) -> str:
    """The code with our name for the kernel, and its parameters in our order."""
    (function,) = functions.functions.values()
    device_name = f"{kernel.name}_kernel"
    found = [parameter.name for parameter in function.params]
    wanted = [*(f"{source.name}_ptr" for source in kernel.inputs), "out_ptr"]
    if not set(found) <= set(wanted):
        raise EgraphOptError(f"the CUDA code of {kernel.name} reads {found}, not {wanted}")
    signature = re.compile(rf"(void .*?{device_name})\((.*?)\)([;{{ ])")

    def reordered(match: re.Match[str]) -> str:
        # What is not read has no parameter.
        kinds = [*["const float*"] * len(kernel.inputs), "float*"]
        parameters = ", ".join(f"{kind} __restrict__ {name}" for kind, name in zip(kinds, wanted, strict=True))
        return f"{match[1]}({parameters}){match[3]}"

    return signature.sub(reordered, code).replace(device_name, kernel.name)


def find_nvcc() -> str | None:
    """nvcc, on the search path or where the toolkit is usually installed."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def modules(
    sources: Sequence[CudaSource], architecture: str, *, nvcc: str | None = None
) -> tuple[list[Module], dict[str, str]]:
    """Machine code of kernels, BATCH in each module, in order; optimized, without fast approximations of functions.

    Also why kernels have none that nvcc refuses, by name. Raises BackendMissing without nvcc.
    """
    compiler = nvcc or find_nvcc()
    if compiler is None:
        raise BackendMissing("no nvcc: the CUDA toolkit is needed to compile kernels for a GPU")
    batches = [sources[i : i + BATCH] for i in range(0, len(sources), BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda batch: _modules(batch, architecture, compiler), batches))
    made = [module for some, _ in found for module in some]
    return made, {name: problem for _, refused in found for name, problem in refused.items()}


def _modules(sources: Sequence[CudaSource], architecture: str, nvcc: str) -> tuple[list[Module], dict[str, str]]:
    """One module, or several where nvcc refuses some of the kernels."""
    try:
        return [_module(sources, architecture, nvcc)], {}
    except EgraphOptError as error:
        if len(sources) == 1:
            return [], {sources[0].name: str(error)}
    half = len(sources) // 2
    left, right = (_modules(some, architecture, nvcc) for some in (sources[:half], sources[half:]))
    return [*left[0], *right[0]], {**left[1], **right[1]}


def joined(sources: Sequence[CudaSource]) -> str:
    """The code of several kernels as one file."""
    # Preambles differ in this header only; the first one serves all.
    first, *others = [source.code for source in sources]
    return "#include <math_constants.h>\n" + first + "".join(code[code.index(_BEGIN) :] for code in others)


def _module(sources: Sequence[CudaSource], architecture: str, nvcc: str) -> Module:
    text = joined(sources)
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
        Path(folder, "kernels.cu").write_text(text)
        command = [nvcc, "-cubin", f"-arch={architecture}", "-O3", "-std=c++17", "-Xptxas", "-v"]
        command += ["kernels.cu", "-o", "kernels.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EgraphOptError(f"nvcc refused the code of a kernel: {done.stderr.strip()[:2000]}")
        return Module(Path(folder, "kernels.cubin").read_bytes(), text, _resources(done.stderr))


def _resources(report: str) -> dict[str, Resources]:
    """What ptxas -v says of each kernel."""
    found: dict[str, Resources] = {}
    for part in report.split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", part)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if name and stack and registers:
            shared_bytes = int(shared[1]) if shared else 0
            found[name[1]] = Resources(int(registers[1]), int(stack[2]), int(stack[1]), shared_bytes)
    return found
