"""Generated CPU kernels: compile, run in this process, and link into a library of onnxruntime custom operators."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.tirx.build import codegen_build

from egraph_opt.backends import tvm_lower, tvm_own, tvm_scheduled, tvm_trace
from egraph_opt.backends.tvm_own import OwnKernel
from egraph_opt.errors import BackendMissing, EgraphOptError, UsageError
from egraph_opt.ir import extensions
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Source, Tensor, show

DOMAIN = "egraph_opt.kernels"
# Bumped whenever the code written for a body changes, so that cached objects and profiles of old code are not used.
CODE_VERSION = 3


@dataclass(frozen=True)
class Kernel:
    """A body over sources ``in0, in1, …`` (see program.kernel_signature), its sources in order, and a schedule: text
    of ``tvm_schedule``, or a trace (``tvm_trace``) that arranges the kernel's blocks.

    The custom operator's output has ``shape`` if given, which must hold as many elements as the body. ``functions``
    follows from the body: the versions of the scalar functions in it that users added.
    """

    body: Tensor
    inputs: tuple[Source, ...]
    schedule: str = ""
    shape: Extents | None = None
    functions: str = field(init=False, default="")

    def __post_init__(self) -> None:
        # Part of what the kernel is: another function may be known by the same name one day.
        object.__setattr__(self, "functions", extensions.identity(self.body))

    @cached_property
    def name(self) -> str:
        """``k_`` and a hash of the content; model texts never get into it."""
        signature = ";".join(f"{source.name}{list(source.extents)}" for source in self.inputs)
        content = f"{CODE_VERSION}|{show(self.body)}|{signature}|{self.schedule}|{self.shape}"
        if self.functions:
            content += f"|{self.functions}"
        return "k_" + hashlib.sha256(content.encode()).hexdigest()[:20]

    # What the kernel library needs to know of any kernel.

    @property
    def arguments(self) -> tuple[Extents, ...]:
        return tuple(source.extents for source in self.inputs)

    @property
    def extents(self) -> Extents:
        return self.body.extents if self.shape is None else self.shape

    @property
    def tasks(self) -> int:
        return tvm_lower.tasks_for(self.body)

    @property
    def shaped(self) -> bool:
        """Whether the code sees tensors as they are, not flat ones."""
        return False


AnyKernel = Kernel | OwnKernel


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel with its object file."""

    kernel: AnyKernel
    code: bytes


@lru_cache(maxsize=1)
def host_target() -> dict[str, Any]:
    """The machine this runs on, as the target description that :func:`compile_object` takes."""
    return {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}


def arranged(kernel: Kernel) -> Any:
    """The loop nest of a generated kernel as a TVM module, its schedule applied."""
    make = tvm_scheduled.scheduled_module if tvm_trace.is_trace(kernel.schedule) else tvm_lower.kernel_module
    return make(kernel.name, kernel.body, kernel.inputs, kernel.schedule)


def machine_code(kernel: AnyKernel, target: Mapping[str, Any] | None = None) -> Any:
    """The kernel compiled for a target (default: this machine), as a TVM module."""
    target = target or host_target()
    if isinstance(kernel, OwnKernel):
        return tvm_own.compiled(kernel, tvm.target.Target(dict(target)))
    goal = tvm.target.Target(dict(target))
    if tvm_trace.is_trace(kernel.schedule):
        return tvm_scheduled.compiled(arranged(kernel), goal)
    module = arranged(kernel)
    # Only the passes that turn a finished loop nest into code. Kernels use flat buffers and
    # nothing that LowerIntrin would have to expand, and the simplifier would find nothing; all of them analyse every
    # binding, which costs minutes on long bodies.
    passes = tirx.transform
    steps = [
        passes.BindTarget(goal.with_host(goal)),
        passes.AnnotateEntryFunc(),
        passes.SplitHostDevice(),
        passes.MakePackedAPI(),
        passes.LowerTVMBuiltin(),
    ]
    return codegen_build(tvm.transform.Sequential(steps)(module), goal)


def compile_object(kernel: AnyKernel, target: Mapping[str, Any] | None = None) -> bytes:
    """The kernel as a relocatable object file for a target (default: this machine)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.o")
        machine_code(kernel, target).write_to_file(str(path))
        return path.read_bytes()


@lru_cache(maxsize=256)
def _compiled(kernel: Kernel) -> Any:
    return machine_code(kernel)[kernel.name]


def jit(kernel: Kernel) -> Any:
    """The compiled kernel as a callable ``f(in0, in1, …, out)`` over flat contiguous float32 arrays."""
    return _compiled(kernel)


def run_kernel(kernel: Kernel, *arrays: np.ndarray) -> np.ndarray:
    """Compile in process and run: one float32 array per input, in order; returns the output."""
    if len(arrays) != len(kernel.inputs):
        raise UsageError(f"kernel {kernel.name} takes {len(kernel.inputs)} arrays, not {len(arrays)}")
    flat = []
    for source, array in zip(kernel.inputs, arrays, strict=True):
        if array.shape != source.extents or array.dtype != np.float32:
            raise UsageError(
                f"{source.name} must be float32 {list(source.extents)}, not {array.dtype} {list(array.shape)}"
            )
        flat.append(np.ascontiguousarray(array).reshape(-1) if array.size else np.zeros(1, np.float32))
    size = int(np.prod(kernel.body.extents, dtype=np.int64))
    result = np.empty(max(size, 1), np.float32)
    jit(kernel)(*flat, result)
    return result[:size].reshape(kernel.body.extents)


# ---- custom operator library ----------------------------------------------------------------------------------------


def build_library(
    kernels: Sequence[AnyKernel],
    path: str | Path,
    *,
    compiler: str = "gcc",
    target: Mapping[str, Any] | None = None,
    objects: Mapping[str, bytes] | None = None,
) -> Path:
    """Link kernels into one shared library for ``SessionOptions.register_custom_ops_library``.

    Each kernel is an operator of domain :data:`DOMAIN` named by ``Kernel.name``, with float32 tensors of static shape.
    ``objects`` gives object files by kernel name where they exist already. Raises BackendMissing without a C compiler.
    """
    if shutil.which(compiler) is None:
        raise BackendMissing(f"no C compiler {compiler!r} on the search path; generated kernels need one to be linked")
    found = {kernel.name: kernel for kernel in kernels}
    if not found:
        raise UsageError("a kernel library needs at least one kernel")
    shim = resources.files("egraph_opt.backends").joinpath("kernel_library.c").read_text()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "table.h").write_text(_table(list(found.values())))
        (work / "kernel_library.c").write_text(shim)
        for name, kernel in found.items():
            code = (objects or {}).get(name) or compile_object(kernel, target)
            (work / f"{name}.o").write_bytes(code)
        command = [compiler, "-O2", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", "-I", folder]
        command += ["-o", "library.so", "kernel_library.c", *(f"{name}.o" for name in found), "-lm"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EgraphOptError(f"{compiler} could not link the kernel library: {done.stderr}")
        result = Path(path)
        shutil.copyfile(work / "library.so", result)
    return result


def _table(kernels: Sequence[AnyKernel]) -> str:
    """C declarations and the table of kernels that the shim includes."""
    lines = [f"int __tvm_ffi_{kernel.name}(void *, FFIAny *, int32_t, FFIAny *);" for kernel in kernels]
    for kernel in kernels:
        shapes = [*kernel.arguments, kernel.extents]
        for i, extents in enumerate(shapes):
            values = ", ".join(map(str, extents or (1,)))
            lines.append(f"static const int64_t {kernel.name}_dims{i}[] = {{{values}}};")
        rows = ", ".join(
            f"{{{len(extents)}, {max(1, int(np.prod(extents, dtype=np.int64)))}, {kernel.name}_dims{i}}}"
            for i, extents in enumerate(shapes)
        )
        lines.append(f"static const Shape {kernel.name}_shapes[] = {{{rows}}};")
    lines.append("static const KernelEntry KERNELS[] = {")
    for kernel in kernels:
        name = kernel.name
        row = (
            f'"{name}", __tvm_ffi_{name}, {len(kernel.arguments)}, {kernel.tasks}, {int(kernel.shaped)}, {name}_shapes'
        )
        lines.append(f"    {{{row}}},")
    lines += ["};", ""]
    return "\n".join(lines)
