"""What a generated kernel is made into: TVM script, assembly, CUDA source and PTX, to be read by people."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from egraph_opt.backends import cuda_build, cuda_schedule, tvm_blocks, tvm_build, tvm_trace
from egraph_opt.backends.tvm_build import Kernel
from egraph_opt.errors import EgraphOptError, UsageError


def script(kernel: Kernel) -> str:
    """The kernel's loops as TVM script."""
    return str(tvm_build.arranged(kernel).script()).strip()


def plain_script(kernel: Kernel) -> str:
    """The blocks that schedules arrange, as TVM script. Raises EgraphOptError where there are none."""
    return str(tvm_blocks.blocks_module(kernel.body, kernel.inputs).script()).strip()


def schedule_python(trace: str, kernel: Kernel) -> list[str]:
    """A trace as the Python statements that make it, on a schedule ``sch`` of the kernel's blocks."""
    schedule = tvm_trace.replayed(trace, tvm_blocks.blocks_module(kernel.body, kernel.inputs))
    return [str(line) for line in schedule.trace.as_python()]


def assembly(kernel: Kernel) -> str:
    """The kernel's machine code for this processor, as text."""
    return str(tvm_build.machine_code(kernel).inspect_source("asm")).strip()


def cuda_code(kernel: Kernel, architecture: str) -> str:
    """The kernel's PTX for an architecture such as sm_90 under its default CUDA schedule; CUDA source without nvcc.

    Raises EgraphOptError for a body that has no CUDA form.
    """
    (schedule, *_) = cuda_schedule.schedules(kernel.body)
    source = cuda_build.cuda_source(cuda_build.CudaKernel(kernel.body, kernel.inputs, schedule), architecture)
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        return f"// no nvcc to make PTX: the CUDA source, {source.launch}\n{source.code.strip()}"
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
        Path(folder, "kernel.cu").write_text(cuda_build.joined([source]))
        command = [nvcc, "-ptx", f"-arch={architecture}", "-O3", "-std=c++17", "kernel.cu", "-o", "kernel.ptx"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EgraphOptError(f"nvcc refused the code of a kernel: {done.stderr.strip()[:2000]}")
        return Path(folder, "kernel.ptx").read_text().strip()


def architecture_of(target: str) -> str:
    """``sm_90`` of ``cuda:sm_90``. Raises UsageError for another target."""
    kind, _, architecture = target.partition(":")
    if kind != "cuda" or not architecture.removeprefix("sm_").rstrip("a").isdecimal():
        raise UsageError(f"unknown target {target!r}; known: cpu, and GPUs such as cuda:sm_90")
    return architecture
