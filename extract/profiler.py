"""Measures steps on this machine: library calls through onnxruntime, kernels as custom operators inside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path

from egraph_opt.backends import tvm_build, tvm_schedule, tvm_trace
from egraph_opt.backends.model_timer import DevicesLost, Expected, TimedModel
from egraph_opt.backends.runner import LocalRunner, Runner
from egraph_opt.backends.runtimes import DEFAULT
from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.extract.alternatives import Alternative
from egraph_opt.extract.own_kernels import has_code, has_kernel, kernel_of_call, trial
from egraph_opt.extract.profile import KERNEL, Measurement, Profile
from egraph_opt.extract.trials import expected_of, kernel_model
from egraph_opt.frontends.onnx_emit import supports
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.frontends.portable import Portable, express
from egraph_opt.ir import library
from egraph_opt.ir.program import Step, kernel_signature
from egraph_opt.ir.terms import Call, Compute, Reshape, Tensor
from egraph_opt.limits import Limits

# Fewer kernels are compiled in this process: another one needs a second before it can.
MANY_KERNELS = 12
PORTABLE = "standard operators"
LIBRARY = "library"
# Of a step whose kernels failed, when standard operators cannot do it either.
NOTHING = "none"
# Models that are timed in turns: their samples lie so far apart that a few busy moments do not spoil all of one.
BATCH = 24
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

    Kernels are held against what they must compute first, and one that is wrong, crashes or hangs is a failure.

    ``compiler`` links kernels; without one only standard operators are timed. ``thorough`` tries all schedules of a
    kernel instead of the default one. Nothing new is begun after ``deadline`` (monotonic seconds) or beyond ``limits``.
    ``objects`` are the compiled kernels that the model will need, by name; ``unbuilt`` says why some cannot be had, by
    signature. ``schedules`` are further schedules to try, by signature. ``runner`` measures, in ``runtime``; ``lost``
    says why it does not any more. Many kernels are compiled in ``compilers``.
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
    schedules: dict[str, Sequence[str]] = field(default_factory=dict)
    runner: Runner = field(default_factory=LocalRunner)
    runtime: str = DEFAULT
    lost: str = ""
    compilers: Executor | None = None

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
            try:
                measured = self._timed(batch)
            except DevicesLost as error:
                self.lost = str(error)
                return
            if self._late():  # what failed may have failed for want of time
                self.profile.add([m for m in measured if m.samples])
                return
            self.profile.add(measured)
            done += len(batch)
            progress(done, len(candidates))

    def build(self, steps: Sequence[tuple[str, Step]]) -> bool:
        """Compile kernels that may fail to, of steps given with their signatures; whether all can be built.

        Failures are recorded like those of measured ones. What there is no time for is left to whoever needs it.
        """
        complete = True
        wanted = list(self._to_build(steps))
        objects = self._compiled([kernel for _, _, _, kernel in wanted if kernel.name not in self.objects])
        for signature, step, schedule, kernel in wanted:
            found = objects.get(kernel.name)
            if isinstance(found, bytes):
                self.objects[kernel.name] = found
            elif found is not None:
                complete = False
                self.unbuilt[signature] = found
                self.profile.add([Measurement(signature, KERNEL + schedule, (), found)])
                if not schedule and self.runnable.portable(step.name, kernel.body) is None:
                    self.profile.add([Measurement(signature, NOTHING, (), "no implementation")])
        return complete

    def _to_build(self, steps: Sequence[tuple[str, Step]]) -> Iterator[tuple[str, Step, str, tvm_build.Kernel]]:
        """Kernels that may fail to be built, with their signatures, steps and schedules."""
        for signature, step in steps:
            kernels = self.compiler is not None and isinstance(step.buffer, Compute) and has_code(step.buffer)
            schedule = self._untried(signature)
            if kernels and schedule is not None:
                yield signature, step, schedule, kernel_of(step, schedule)

    def _compiled(self, kernels: Sequence[tvm_build.AnyKernel]) -> dict[str, bytes | str]:
        """Object files by name, or in words why there is none; without those that there was no time for."""
        found: dict[str, bytes | str] = {}
        different = {kernel.name: kernel for kernel in kernels}
        futures: dict[str, Future[bytes]] = {}
        if self.compilers is not None and len(different) >= MANY_KERNELS:
            for name, kernel in different.items():
                if isinstance(kernel, tvm_build.Kernel) and not kernel.functions:
                    futures[name] = self.compilers.submit(tvm_build.compile_object, kernel)
        for name, kernel in different.items():
            if self._late():
                break
            try:
                found[name] = futures[name].result() if name in futures else compiled(kernel)
            except Exception:  # of the process, or of a kernel that only this one can build
                if self._late():
                    break
                found[name] = compiled(kernel)
        return found

    def _untried(self, signature: str) -> str | None:
        """The schedule of a kernel that this machine may not be able to build: one that was never measured, or a trace,
        which may be a stranger's."""
        best = self.profile.verdict(signature)
        schedule = best.implementation.removeprefix(KERNEL) if best is not None and best.samples else ""
        if tvm_trace.is_trace(schedule):
            return schedule
        return None if self.profile.knows(signature, KERNEL) else ""

    def _late(self) -> bool:
        return bool(self.lost) or time.monotonic() >= self.deadline or bool(self.limits.reached())

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
                found += self._kernels(signature, step, opset)
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

    def _kernels(self, signature: str, step: Step, opset: int) -> list[Candidate]:
        """Generated kernels under schedules that were not measured."""
        schedules = tvm_schedule.schedules(kernel_of(step, "").body) if self.thorough else ("",)
        schedules = (*schedules, *self.schedules.get(signature, ()))
        new = [name for name in schedules if not self.profile.knows(signature, KERNEL + name)]
        return _under(signature, step, opset, new) if new else []

    def in_turns(self, signature: str, step: Step, schedules: Sequence[str]) -> list[Measurement]:
        """A kernel under some schedules, whatever is known of them, timed in turns; nothing is kept, and failures are
        left out."""
        if self._late():
            return []
        try:
            measured = self._timed(_under(signature, step, timing_opset(self.opset), schedules))
        except DevicesLost as error:
            self.lost = str(error)
            return []
        return [measurement for measurement in measured if measurement.samples]

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
            models = [
                TimedModel(c.model, library if c.kernel is not None else None, c.expected, self.runtime) for c in live
            ]
            limits = self.limits.until(self.deadline)
            results = self.runner.time_each(models, threads=self.threads, limits=limits) if models else []
        measured = [
            Measurement(c.signature, c.implementation, tuple(samples), error)
            for c, (samples, error) in zip(live, results, strict=True)
        ]
        return measured + [
            Measurement(c.signature, c.implementation, (), failed.get(c.kernel.name if c.kernel else "", "not built"))
            for c in dead
        ]

    def _library(self, batch: Sequence[Candidate], folder: Path) -> tuple[Path | None, dict[str, str]]:
        kernels = list({c.kernel.name: c.kernel for c in batch if c.kernel is not None}.values())
        found = self._compiled(kernels)
        if len(found) < len(kernels):
            return None, dict.fromkeys((kernel.name for kernel in kernels), "the time limit was reached")
        objects = {name: code for name, code in found.items() if isinstance(code, bytes)}
        failed = {name: why for name, why in found.items() if isinstance(why, str)}
        built = [kernel for kernel in kernels if kernel.name in objects]
        if not built:
            return None, failed
        path = folder / "candidates.so"
        return tvm_build.build_library(built, path, compiler=str(self.compiler), objects=objects), failed


def _under(signature: str, step: Step, opset: int, schedules: Sequence[str]) -> list[Candidate]:
    """A generated kernel under some schedules."""
    meant = expected_of(kernel_of(step, ""))
    found = []
    for schedule in schedules:
        kernel = kernel_of(step, schedule)
        found.append(Candidate(signature, KERNEL + schedule, kernel_model(kernel, opset), kernel, meant))
    return found


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
