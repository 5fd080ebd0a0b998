"""Static descriptions of GPUs, for choosing what is worth measuring on one that is not at hand.

Figures are the makers' data sheets (NVIDIA H100 and H200 Tensor Core GPU, 2024: float32 outside tensor cores, memory
bandwidth, second-level cache); what a launch costs inside a CUDA graph and the bandwidth of the cache are round figures
from published microbenchmarks, not measurements of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from egraph_opt.errors import UsageError
from egraph_opt.extract.roofline import Device

_HOPPER_EFFICIENCY = {"MatMul": 0.85, "Gemm": 0.85, "Conv": 0.7, "ConvTranspose": 0.4}


def _hopper(bandwidth: float) -> Device:
    return Device(
        flops=6.7e13,
        bandwidths=((40 << 20, 1.0e13), (1 << 62, bandwidth)),
        call_seconds=2.5e-6,
        kernel_seconds=2.0e-6,
        reshape_seconds=0.0,
        scalar_seconds=3e-13,
        lanes=1,
        efficiency=_HOPPER_EFFICIENCY,
    )


GPUS: Mapping[str, Device] = {"h200": _hopper(4.8e12), "h100": _hopper(3.35e12)}
# The GPU that stands for each architecture while nothing was measured.
TYPICAL: Mapping[str, str] = {"sm_90": "h200"}


# Where measured profile databases lie that come with the package; what they hold is named by device and versions.
PROFILES = Path(__file__).parent / "profiles"


def shipped() -> list[Path]:
    """The profile databases that come with the package."""
    return sorted(PROFILES.glob("*.db"))


def architecture_of(target: str) -> str:
    """``sm_90`` of ``cuda:sm_90``. Raises UsageError for an unknown target."""
    kind, _, architecture = target.partition(":")
    if kind != "cuda" or architecture not in TYPICAL:
        known = ", ".join(f"cuda:{name}" for name in TYPICAL)
        raise UsageError(f"unknown target {target!r}; known: cpu, {known}")
    return architecture
