"""What this machine offers: versions, compiler, processor, threads, TVM's target."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

REQUIRED = ("egglog", "numpy", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi")
COMPILERS = ("cc", "gcc", "clang")


def package_versions() -> dict[str, str]:
    """Installed versions of this project and of what it builds on; missing ones are absent. Imports none of them."""
    versions = {"python": platform.python_version()}
    for name in ("egraph-opt", *REQUIRED):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def find_compiler() -> Path | None:
    """The C compiler that links kernel libraries, or None: then only portable models can be written."""
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return Path(found)
    return None


def working_compiler() -> tuple[Path | None, str]:
    """A compiler that can make a shared library, or None and in words what is missing."""
    compiler = find_compiler()
    if compiler is None:
        return None, "no C compiler was found"
    with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
        command = [str(compiler), "-shared", "-fPIC", "-x", "c", "-", "-o", "probe.so", "-lm"]
        source = "#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint probe;\n"
        try:
            done = subprocess.run(
                command, input=source, cwd=folder, capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, f"the C compiler {compiler} does not run: {error}"
        if done.returncode:
            complaint = next((line for line in done.stderr.splitlines() if "error" in line), "")
            return None, f"the C compiler {compiler} cannot make a library: {complaint.strip()}"
    return compiler, ""


def compiler_version(compiler: Path) -> str:
    """The first line of ``CC --version``."""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    return next(iter(done.stdout.splitlines()), "unknown version")


def processor_name() -> str:
    """The processor's model name."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_suffices() -> bool:
    """Whether as much memory is free as this process has ever taken: what running the same models again may need."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return available_memory() > peak


def available_memory() -> int:
    """Bytes of main memory that are free for new use, also within what this process's control group may hold."""
    free = int(psutil.virtual_memory().available)
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        place = Path("/sys/fs/cgroup") / group.lstrip("/")
        held = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
        used = int((place / "memory.current").read_text()) - int(held.get("inactive_file", 0))
        return min(free, max(0, int((place / "memory.max").read_text()) - used))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return free


def usable_threads() -> int:
    """Logical processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tvm_target() -> str:
    """The processor TVM generates code for, or why it cannot. Imports TVM, which takes a second or two."""
    try:
        import tvm

        return f"llvm -mcpu={tvm.target.codegen.llvm_get_system_cpu()}"
    except Exception as error:  # a broken TVM fails in many ways; doctor reports them all
        return f"missing: {type(error).__name__}: {error}"


def kernel_target() -> str:
    """What generated kernels are compiled for; they run where this is the same. Imports TVM."""
    return f"{sys.platform} {platform.machine()} {tvm_target()}"


def device_key(threads: int | None) -> str:
    """What measurements depend on: processor, threads and the versions of everything that runs or makes code."""
    versions = package_versions()
    runtimes = ", ".join(f"{name} {versions.get(name, 'missing')}" for name in ("onnxruntime", "apache-tvm"))
    return f"{processor_name()}; {threads or usable_threads()} threads; {runtimes}"
