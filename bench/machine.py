"""Where a measurement was made: processor, versions, commit, free memory."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("numpy", "onnx", "onnxruntime", "egglog", "apache-tvm", "apache-tvm-ffi")


def available_cores() -> int:
    """The number of logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, object]:
    """Processor model, cores, system and the versions of what is installed of the packages that matter."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"cpu": _cpu_model(), "cores": available_cores(), "system": platform.platform(), "versions": versions}


def current_commit() -> str | None:
    """The commit of this checkout, with "-dirty" when tracked files were changed; None outside of git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit


def available_memory() -> float:
    """GiB that can still be used without swapping; infinite where the system does not tell."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return float("inf")


def _cpu_model() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
