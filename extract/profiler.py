"""Measures steps on this machine: library calls through onnxruntime, kernels as custom operators inside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path

from egraph_opt.backends import tvm_build, tvm_schedule
from egraph_opt.backends.model_timer import Expected, TimedModel, time_each
from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.extract.alternatives import Alternative
from egraph_opt.extract.own_kernels import has_code, has_kernel, kernel_of_call, trial
from egraph_opt.extract.profile import KERNEL, Measurement, Profile
from egraph_opt.frontends.onnx_emit import supports
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.frontends.portable import Portable, express
from egraph_opt.ir import library
from egraph_opt.ir.program import Step, kernel_signature
from egraph_opt.ir.terms import Call, Compute, Reshape, Tensor
from egraph_opt.limits import Limits

PORTABLE = "standard operators"
LIBRARY = "library"
# Of a step whose kernels failed, when standard operators cannot do it either.
NOTHING = "none"
# Models timed by one worker process: a crash costs at most this many measurements a second try.
BATCH = 24
BATCH_SECONDS = 120.0
# The range of opsets that steps are timed at; the model itself may be older or newer.
LOWEST_OPSET, HIGHEST_OPSET = 13, 21
# Beside a kernel, standard operators are only worth timing while they are about as few as what they replace.
FEW_OPERATORS = 2


@dataclass(frozen=True)
class Candidate:
    """One implementation of one step, ready to be timed."""

    signature: str
    implementation: str
    model: bytes
    kernel: tvm_build.AnyKernel | None = None
    expected: Expected | None = None


@dataclass
class Runnable:
    """Tells which steps can be written into a model of an opset, with or without generated kernels.

    ``own`` are the calls by key that kernels of users could compute: the operator, and why its kernel cannot.
    """

    opset: int
    kernels: bool
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    _known: dict[str, bool] = field(default_factory=dict)

    def __call__(self, alternative: Alternative) -> bool:
        step = alternative.step
        if isinstance(step, Reshape) or (self.kernels and isinstance(step, Compute) and has_code(step)):
            return True
        key = alternative.text
        if key not in self._known:
            if isinstance(step, Call):
                self._known[key] = (self.kernels and self._own(key, step)) or supports(step, self.opset)
            else:
                self._known[key] = self.portable("y", kernel_signature(step.tensor)[0]) is not None
        return self._known[key]

    def _own(self, key: str, call: Call) -> bool:
        if not has_kernel(call):
            return False
        try:
            kernel_of_call(call)
        except EgraphOptError as error:
            self.own[key] = call.operator, str(error)
            return False
        self.own[key] = call.operator, ""
        return True

    def portable(self, name: str, body: Tensor) -> Portable | None:
        """A kernel body as standard operators of this opset, if there are any that can do it."""
        found = express(name, body)
        if found is None or not all(supports(s.buffer, self.opset) for s in found.steps if isinstance(s.buffer, Call)):
            return None
        return found


@dataclass
class Profiler:
    """Times the implementations of steps and keeps the results in a profile.

    ``compiler`` links kernels; without one only standard operators are timed. ``thorough`` tries all schedules of a
    kernel instead of the default one. Nothing new is begun after ``deadline`` (monotonic seconds) or beyond ``limits``.
    ``objects`` are the compiled kernels that the model will need, by name; ``unbuilt`` says why some cannot be had, by
    signature.
    """

    profile: Profile
    compiler: Path | None
    threads: int | None
    opset: int
    thorough: bool = False
    deadline: float = inf
    limits: Limits = field(default_factory=Limits)
    objects: dict[str, bytes] = field(default_factory=dict)
    unbuilt: dict[str, str] = field(default_factory=dict)

    @cached_property
    def runnable(self) -> Runnable:
        """What can be written into the model."""
        return Runnable(self.opset, self.compiler is not None)

    def measure(self, steps: Sequence[tuple[str, Step]], progress: Callable[[int, int], None]) -> None:
        """Measure implementations that were not measured before, of steps given with their signatures.

        Failures are recorded as such.
        """
        self._measure(steps, progress)
        again = [(signature, step) for signature, step in steps if self.profile.verdict(signature) is None]
        if again:  # their kernels failed
            self._measure(again, progress)
        for signature, _ in again:
            if self.profile.verdict(signature) is None and not self._late():
                self.profile.add([Measurement(signature, NOTHING, (), "no implementation")])

    def _measure(self, steps: Sequence[tuple[str, Step]], progress: Callable[[int, int], None]) -> None:
        candidates: list[Candidate] = []
        for signature, step in steps:
            if self._late():
                return
            candidates += self.candidates(signature, step)
        done = 0
        for begin in range(0, len(candidates), BATCH):
            batch = candidates[begin : begin + BATCH]
            measured = self._timed(batch)
            if self._late():  # what failed may have failed for want of time
                self.profile.add([m for m in measured if m.samples])
                return
            self.profile.add(measured)
            done += len(batch)
            progress(done, len(candidates))

    def build(self, steps: Sequence[tuple[str, Step]]) -> bool:
        """Compile kernels that were never measured, of steps given with their signatures; whether all can be built.

        Failures are recorded like those of measured ones. What there is no time for is left to whoever needs it.
        """
        complete = True
        for signature, step in steps:
            kernels = self.compiler is not None and isinstance(step.buffer, Compute) and has_code(step.buffer)
            if not kernels or self.profile.knows(signature, KERNEL) or self._late():
                continue
            kernel = kernel_of(step, "")
            if kernel.name not in self.objects:
                found = compiled(kernel)
                if isinstance(found, bytes):
                    self.objects[kernel.name] = found
                else:
                    complete = False
                    self.unbuilt[signature] = found
                    self.profile.add([Measurement(signature, KERNEL, (), found)])
                    if self.runnable.portable(step.name, kernel.body) is None:
                        self.profile.add([Measurement(signature, NOTHING, (), "no implementation")])
        return complete

    def _late(self) -> bool:
        return time.monotonic() >= self.deadline or bool(self.limits.reached())

    def candidates(self, signature: str, step: Step) -> list[Candidate]:
        """Implementations worth timing: the call itself; kernels under several schedules, standard operators."""
        found: list[Candidate] = []
        opset = timing_opset(self.opset)
        if isinstance(step.buffer, Call):
            if has_kernel(step.buffer):
                found += self._own_kernel(signature, step.buffer, opset)
                if library.lookup(step.buffer.operator).onnx is None:
                    return found
            if not self.profile.knows(signature, LIBRARY):
                try:
                    found.append(Candidate(signature, LIBRARY, standalone([step], opset=opset)))
                except EgraphOptError as error:
                    self.profile.add([Measurement(signature, LIBRARY, (), str(error))])
        if not isinstance(step.buffer, Compute):
            return found
        if self.compiler is not None and has_code(step.buffer):
            try:
                body, _ = kernel_signature(step.buffer.tensor)
                for schedule in tvm_schedule.schedules(body) if self.thorough else ("",):
                    if self.profile.knows(signature, KERNEL + schedule):
                        continue
                    kernel = kernel_of(step, schedule)
                    model = standalone([step], {step.name: kernel.name}, opset=opset)
                    found.append(Candidate(signature, KERNEL + schedule, model, kernel))
            except Exception as error:  # like a code generator that fails below: this is one candidate of many
                self.profile.add([Measurement(signature, KERNEL, (), f"{type(error).__name__}: {error}")])
        if self.profile.knows(signature, PORTABLE):
            return found
        portable = self.runnable.portable(step.name, step.buffer.tensor)
        last = self.compiler is None or bool(self.profile.failure(signature, KERNEL))
        if portable is not None and (last or len(portable.steps) <= FEW_OPERATORS):
            try:
                found.append(Candidate(signature, PORTABLE, standalone(portable.steps, opset=opset)))
            except EgraphOptError as error:
                self.profile.add([Measurement(signature, PORTABLE, (), str(error))])
        return found

    def _own_kernel(self, signature: str, call: Call, opset: int) -> list[Candidate]:
        """The user's kernel for a call, to be held against the operator's meaning before it is timed."""
        if self.compiler is None or self.profile.knows(signature, KERNEL):
            return []
        try:
            kernel = kernel_of_call(call)
            model, expected = trial(call, kernel, opset)
        except EgraphOptError as error:
            self.profile.add([Measurement(signature, KERNEL, (), str(error))])
            return []
        return [Candidate(signature, KERNEL, model, kernel, expected)]

    def complaints(self) -> tuple[str, ...]:
        """Which kernels of users are not used because something is wrong with them, and what."""
        found = dict[str, None]()
        for key, (operator, problem) in sorted(self.runnable.own.items()):
            why = problem or self.profile.failure(key, KERNEL)
            if why:
                found[f"the kernel of {operator} is not used: {why}"] = None
        return tuple(found)

    def _timed(self, batch: Sequence[Candidate]) -> list[Measurement]:
        with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            library, failed = self._library(batch, Path(folder))
            live = [c for c in batch if c.kernel is None or (library is not None and c.kernel.name not in failed)]
            dead = [c for c in batch if c not in live]
            models = [TimedModel(c.model, library if c.kernel is not None else None, c.expected) for c in live]
            results = time_each(
                models, threads=self.threads, timeout=BATCH_SECONDS, limits=self.limits.until(self.deadline)
            )
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
            if self._late():
                return None, dict.fromkeys((kernel.name for kernel in kernels), "the time limit was reached")
            found = compiled(kernel)
            if isinstance(found, bytes):
                objects[kernel.name] = found
            else:
                failed[kernel.name] = found
        built = [kernel for kernel in kernels if kernel.name in objects]
        if not built:
            return None, failed
        path = folder / "candidates.so"
        return tvm_build.build_library(built, path, compiler=str(self.compiler), objects=objects), failed


def timing_opset(opset: int) -> int:
    """Opset of the small models for a model of this opset: one that onnxruntime implements in full."""
    return min(max(opset, LOWEST_OPSET), HIGHEST_OPSET)


def compiled(kernel: tvm_build.AnyKernel) -> bytes | str:
    """The object file of a kernel, or in words why there is none: one that cannot be built must not end the run."""
    try:
        return tvm_build.compile_object(kernel)
    except BackendMissing:
        raise
    except EgraphOptError as error:
        return str(error)
    except Exception as error:  # a code generator may raise anything
        return f"{type(error).__name__}: {error}"


def kernel_of(step: Step, schedule: str) -> tvm_build.Kernel:
    """The kernel that fills a Compute step's buffer under a schedule."""
    assert isinstance(step.buffer, Compute)
    body, sources = kernel_signature(step.buffer.tensor)
    inputs = tuple(type(s)(f"in{i}", s.extents) for i, s in enumerate(sources))
    return tvm_build.Kernel(body, inputs, schedule, step.shape)
