"""Measures steps on this machine: library calls through onnxruntime, kernels as custom operators inside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from egraph_opt.backends import tvm_build, tvm_schedule
from egraph_opt.backends.model_timer import TimedModel, time_each
from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.extract.profile import Measurement, Profile
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.frontends.portable import express
from egraph_opt.ir.program import Step, kernel_signature
from egraph_opt.ir.terms import Call, Compute, Reshape, Tensor

PORTABLE = "standard operators"
LIBRARY = "library"
KERNEL = "kernel "
# Models timed by one worker process: a crash costs at most this many measurements a second try.
BATCH = 24
# Beside a kernel, standard operators are only worth timing while they are about as few as what they replace.
FEW_OPERATORS = 2


@dataclass(frozen=True)
class Candidate:
    """One implementation of one step, ready to be timed."""

    signature: str
    implementation: str
    model: bytes
    kernel: tvm_build.Kernel | None = None


@dataclass
class Profiler:
    """Times the implementations of steps and keeps the results in a profile.

    ``thorough`` tries all schedules of a kernel instead of the default one.
    """

    profile: Profile
    kernels: bool
    threads: int | None
    opset: int
    thorough: bool = False

    def measure(self, steps: Sequence[tuple[str, Step]], progress: Callable[[int, int], None]) -> None:
        """Measure every implementation of steps given with their signatures; failures are recorded as such."""
        candidates = [c for signature, step in steps for c in self.candidates(signature, step)]
        done = 0
        for begin in range(0, len(candidates), BATCH):
            batch = candidates[begin : begin + BATCH]
            self.profile.add(self._timed(batch))
            done += len(batch)
            progress(done, len(candidates))
        for signature, _ in steps:
            if self.profile.best(signature) is None:
                self.profile.add([Measurement(signature, "none", (), "no implementation")])

    def candidates(self, signature: str, step: Step) -> list[Candidate]:
        """Implementations worth timing: the call itself; kernels under several schedules, standard operators."""
        found: list[Candidate] = []
        if isinstance(step.buffer, Call):
            return [Candidate(signature, LIBRARY, standalone([step], opset=self.opset))]
        if not isinstance(step.buffer, Compute):
            return []
        body, sources = kernel_signature(step.buffer.tensor)
        if self.kernels:
            try:
                for schedule in tvm_schedule.schedules(body) if self.thorough else ("",):
                    kernel = kernel_of(step, schedule)
                    model = standalone([step], {step.name: kernel.name}, opset=self.opset)
                    found.append(Candidate(signature, KERNEL + schedule, model, kernel))
            except EgraphOptError as error:
                self.profile.add([Measurement(signature, KERNEL, (), str(error))])
        portable = express(step.name, step.buffer.tensor)
        if portable is not None and (not self.kernels or len(portable.steps) <= FEW_OPERATORS):
            try:
                found.append(Candidate(signature, PORTABLE, standalone(portable.steps, opset=self.opset)))
            except EgraphOptError as error:
                self.profile.add([Measurement(signature, PORTABLE, (), str(error))])
        return found

    def _timed(self, batch: Sequence[Candidate]) -> list[Measurement]:
        with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            library, failed = self._library(batch, Path(folder))
            live = [c for c in batch if c.kernel is None or (library is not None and c.kernel.name not in failed)]
            dead = [c for c in batch if c not in live]
            models = [TimedModel(c.model, library if c.kernel is not None else None) for c in live]
            results = time_each(models, threads=self.threads)
        measured = [
            Measurement(c.signature, c.implementation, tuple(samples), error)
            for c, (samples, error) in zip(live, results, strict=True)
        ]
        return measured + [
            Measurement(c.signature, c.implementation, (), failed.get(c.kernel.name if c.kernel else "", "not built"))
            for c in dead
        ]

    def _library(self, batch: Sequence[Candidate], folder: Path) -> tuple[Path | None, dict[str, str]]:
        objects: dict[str, bytes] = {}
        failed: dict[str, str] = {}
        kernels = list({c.kernel.name: c.kernel for c in batch if c.kernel is not None}.values())
        for kernel in kernels:
            try:
                objects[kernel.name] = tvm_build.compile_object(kernel)
            except BackendMissing:
                raise
            except Exception as error:  # a code generator that fails on one body must not end the run
                failed[kernel.name] = f"{type(error).__name__}: {error}"
        built = [kernel for kernel in kernels if kernel.name in objects]
        if not built:
            return None, failed
        return tvm_build.build_library(built, folder / "candidates.so", objects=objects), failed


@lru_cache(maxsize=None)
def _portable(body: Tensor) -> bool:
    return express("y", body) is not None


def expressible(step: Call | Compute | Reshape) -> bool:
    """Whether standard operators can do what a step does."""
    return not isinstance(step, Compute) or _portable(kernel_signature(step.tensor)[0])


def kernel_of(step: Step, schedule: str) -> tvm_build.Kernel:
    """The kernel that fills a Compute step's buffer under a schedule."""
    assert isinstance(step.buffer, Compute)
    body, sources = kernel_signature(step.buffer.tensor)
    inputs = tuple(type(s)(f"in{i}", s.extents) for i, s in enumerate(sources))
    return tvm_build.Kernel(body, inputs, schedule, step.shape)
