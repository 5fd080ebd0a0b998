"""Comparing candidates with the original on random inputs, and both with a float64 reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.backends.model_timer import TimedModel
from egraph_opt.backends.onnxruntime import (
    RANDOM,
    Fill,
    Shapes,
    random_inputs,
)
from egraph_opt.backends.session_process import Opened, SessionProcess
from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected, LimitReached
from egraph_opt.frontends.onnx_storage import APART, stored_bytes
from egraph_opt.ir.interpreter import run_program
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Call, Compute, Reduce, Reshape, Source, Tensor, View, children
from egraph_opt.runtime.compare import OutputError, compare_outputs, worst
from egraph_opt.runtime.report import Accuracy

if TYPE_CHECKING:
    from egraph_opt.frontends.regions import Region

# The float64 reference is computed when the model's contractions have at most this many products, and no operand of one
# takes more than this many elements when its view is written out.
REFERENCE_PRODUCTS, REFERENCE_ELEMENTS = 3_000_000_000, 1 << 25
# Inputs to try in this order until the original runs: integers may be indices, lengths or scales.
FILLS: tuple[Fill, ...] = (RANDOM, (0, None), (1, None), (1, 1), (0, 0))
# A model that runs longer than this many seconds is not optimized: a loop may have no end.
RUN_SECONDS = 30.0
# A candidate's error against float64 may be this many times the original's, or this share of the range.
ERROR_GROWTH, NEGLIGIBLE_ERROR = 10.0, 2e-6


@dataclass
class Judge:
    """The original's answers on ``runs`` random inputs, to hold candidates against.

    ``problem`` says why nothing can be verified: the original runs on none of the inputs that were tried, or too long,
    or beyond ``deadline`` (monotonic seconds). ``shapes`` are those of inputs with symbolic dimensions, 1 otherwise.
    ``fill`` tells what inputs it runs on, ``label`` names it in messages.
    Sessions live in the process ``sessions``; close the judge, or use it as a context manager. Raises InputRejected
    when the original does not load, LimitReached when that is not known by then.
    """

    original: Path
    runs: int
    seed: int
    threads: int | None
    label: str = "the model"
    deadline: float = inf
    shapes: Shapes = field(default_factory=dict)
    sessions: SessionProcess = field(default_factory=SessionProcess)
    fill: Fill = RANDOM
    problem: str = ""
    expected: list[tuple[dict[str, np.ndarray], list[Any]]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _volatile: frozenset[str] | None = None
    _reference: list[np.ndarray] | None = None

    def __post_init__(self) -> None:
        try:
            # Where nothing will be run, onnxruntime need not compute constants: they may be larger than all memory.
            opened = self.sessions.open(self.original, threads=self.threads, optimize=self.runs > 0)
        except InputRejected as failure:
            raise InputRejected(str(failure).replace(str(self.original), self.label)) from failure
        self.names = [spec.name for spec in opened.outputs]
        for fill in FILLS if self.runs else ():
            try:
                self.expected = [self._answers(opened, fill, number) for number in range(self.runs)]
            except InputRejected as failure:
                self.problem = self.problem or str(failure)
            except (LimitReached, MemoryError) as failure:
                self.problem = str(failure) or "it takes more memory than there is"
                break
            else:
                self.fill, self.problem = fill, ""
                break
        self._release()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        """End a session; a process gives back what a large one took only when it ends."""
        if stored_bytes(self.original) > APART:
            self.sessions.close()
        else:
            self.sessions.release()

    def close(self) -> None:
        """End the process of the sessions."""
        self.sessions.close()

    def _answers(self, opened: Opened, fill: Fill, number: int) -> tuple[dict[str, np.ndarray], list[Any]]:
        inputs = random_inputs(opened.inputs, seed=self.seed + number, shapes=self.shapes, fill=fill)
        return inputs, self.sessions.run(inputs, seconds=self._seconds())

    def _seconds(self) -> float:
        """How long one run may take: at least a moment, because a run that is late still says whether it works."""
        return max(min(RUN_SECONDS, self.deadline - time.monotonic()), 1.0)

    def verdict(self, candidate: TimedModel, regions: Sequence[Region]) -> Accuracy | str | None:
        """The errors of a candidate, None when nothing is to be compared, or in words why it is wrong."""
        try:
            self.sessions.open(
                candidate.model,
                kernel_library=candidate.kernel_library,
                threads=self.threads,
                runtime=candidate.runtime,
            )
            answers = [self.sessions.run(inputs, seconds=RUN_SECONDS) for inputs, _ in self.expected]
            self._release()
        except (InputRejected, BackendMissing, LimitReached) as failure:
            return str(failure)
        if not self.expected:
            return None
        absolute = relative = 0.0
        for (inputs, expected), answer in zip(self.expected, answers, strict=True):
            errors = compare_outputs(expected, answer, names=self.names)
            wrong = [e for e in errors if not e.within and _output_of(e, self.names) not in self.volatile(inputs)]
            if wrong:
                return _complaint(wrong[0])
            one, other = worst([e for e in errors if e.within])
            absolute, relative = max(absolute, one), max(relative, other)
        found = self._with_reference(Accuracy(absolute, relative, inputs=self.runs, seed=self.seed), answers, regions)
        if found.original_float64 is not None and found.optimized_float64 is not None:
            growth = found.optimized_float64 / max(found.original_float64, NEGLIGIBLE_ERROR / ERROR_GROWTH)
            if growth > ERROR_GROWTH:
                return f"its error against float64 is {found.optimized_float64:.1e}, {growth:.0f} times the original's"
        return found

    def volatile(self, inputs: dict[str, np.ndarray]) -> frozenset[str]:
        """Outputs in which the original itself differs from run to run, because it draws random numbers."""
        if self._volatile is None:
            self.sessions.open(self.original, threads=self.threads)
            twice = [self.sessions.run(inputs, seconds=RUN_SECONDS) for _ in range(2)]
            self._release()
            errors = compare_outputs(*twice, names=self.names)
            self._volatile = frozenset(_output_of(e, self.names) for e in errors if not e.within)
        return self._volatile

    def _with_reference(self, found: Accuracy, answers: Sequence[list[Any]], regions: Sequence[Region]) -> Accuracy:
        """Add the errors against float64, when the whole model is one region of bearable size."""
        if self._reference is None:
            self._reference = self._exact(regions)
        if not self._reference:
            return found
        errors = _error(self._reference, self.expected[0][1]), _error(self._reference, answers[0])
        if not all(isfinite(error) for error in errors):
            return found
        return replace(found, original_float64=errors[0], optimized_float64=errors[1])

    def _exact(self, regions: Sequence[Region]) -> list[np.ndarray]:
        if len(regions) != 1 or not affordable(regions[0].program):
            return []
        program, inputs = regions[0].program, self.expected[0][0]
        try:
            with np.errstate(all="ignore"):
                exact = run_program(program, {s.name: inputs[s.name] for s in program.inputs if not s.constant})
            return [exact[name] for name in self.names]
        except (KeyError, EgraphOptError, MemoryError):
            return []


def _output_of(error: OutputError, names: Sequence[str]) -> str:
    """The output that an error belongs to: elements of sequences have the output's name and an index."""
    return error.name if error.name in names else error.name.partition("[")[0]


def _complaint(error: OutputError) -> str:
    if error.mismatch:
        return f"output {error.name} differs: {error.mismatch}"
    return f"output {error.name} differs by {error.max_relative:.1e} of its range"


def _error(reference: Sequence[np.ndarray], values: Sequence[Any]) -> float:
    """Largest error relative to the largest magnitude of each output, where the reference is finite."""
    errors = []
    for exact, value in zip(reference, values, strict=True):
        finite = np.isfinite(exact)
        if finite.any():
            with np.errstate(all="ignore"):
                error = np.max(np.abs(np.asarray(value, np.float64)[finite] - exact[finite]))
            errors.append(float(error / max(float(np.max(np.abs(exact[finite]))), 1e-300)))
    return max(errors, default=0.0)


def affordable(program: Program) -> bool:
    """Whether the plain definitions of a program can be evaluated with numpy in a few seconds."""
    total = 0
    pending: list[Tensor] = [term for _, term in program.definitions]
    while pending:
        term = pending.pop()
        if isinstance(term, Reduce) and isinstance(term.tensor, Apply) and term.tensor.function == "mul":
            total += prod(term.tensor.extents)
            for operand in term.tensor.arguments:
                if isinstance(operand, View) and _written_out(operand) > REFERENCE_ELEMENTS:
                    return False
        elif prod(term.extents) > REFERENCE_ELEMENTS:
            return False
        else:
            pending += [child for child in children(term) if not isinstance(child, Source | Call | Compute | Reshape)]
    return total <= REFERENCE_PRODUCTS


def _written_out(operand: View) -> int:
    used = {i for e in (*operand.map.indices, *operand.map.guards) for i in e.iterators}
    return prod(operand.map.result[i] for i in used)
