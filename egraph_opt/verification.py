"""Comparing candidates with the original on random inputs, and both with a float64 reference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt.backends.onnxruntime import input_specs, make_session, output_specs, random_inputs, run
from egraph_opt.errors import BackendMissing, EgraphOptError, InputRejected
from egraph_opt.ir.interpreter import run_program
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Call, Compute, Reduce, Reshape, Source, Tensor, View, children
from egraph_opt.runtime.compare import compare_outputs, worst
from egraph_opt.runtime.report import Accuracy

if TYPE_CHECKING:
    from egraph_opt.frontends.regions import Region

# The float64 reference is computed when the model's contractions have at most this many products, and no operand of one
# takes more than this many elements when its view is written out.
REFERENCE_PRODUCTS, REFERENCE_ELEMENTS = 3_000_000_000, 1 << 25


@dataclass
class Judge:
    """The original's answers on ``runs`` random inputs, to hold candidates against.

    Raises InputRejected when the original does not run.
    """

    original: bytes
    runs: int
    seed: int
    threads: int | None
    expected: list[tuple[dict[str, np.ndarray], list[Any]]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        session = make_session(self.original, threads=self.threads, spin=False)
        self.names = [spec.name for spec in output_specs(session)]
        for number in range(self.runs):
            inputs = random_inputs(input_specs(session), seed=self.seed + number)
            self.expected.append((inputs, run(session, inputs)))

    def verdict(self, model: bytes, library: bytes | None, regions: Sequence[Region]) -> Accuracy | str:
        """The errors of a candidate, or in words why it is wrong."""
        with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            path = Path(folder) / "kernels.so" if library is not None else None
            if path is not None and library is not None:
                path.write_bytes(library)
            try:
                session = make_session(model, kernel_library=path, threads=self.threads, spin=False)
                answers = [run(session, inputs) for inputs, _ in self.expected]
            except (InputRejected, BackendMissing) as failure:
                return str(failure)
        absolute = relative = 0.0
        for (_, expected), answer in zip(self.expected, answers, strict=True):
            errors = compare_outputs(expected, answer, names=self.names)
            wrong = next((e for e in errors if not e.within), None)
            if wrong is not None:
                return f"output {wrong.name} differs by {wrong.max_relative:.1e} of its range {wrong.mismatch}".rstrip()
            one, other = worst(errors)
            absolute, relative = max(absolute, one), max(relative, other)
        found = Accuracy(absolute, relative, inputs=self.runs, seed=self.seed)
        return self._with_reference(found, answers, regions)

    def _with_reference(self, found: Accuracy, answers: Sequence[list[Any]], regions: Sequence[Region]) -> Accuracy:
        """Add the errors against float64, when the whole model is one region of bearable size."""
        if len(regions) != 1 or not answers or not affordable(regions[0].program):
            return found
        program, (inputs, expected) = regions[0].program, self.expected[0]
        try:
            exact = run_program(program, {s.name: inputs[s.name] for s in program.inputs if not s.constant})
            reference = [exact[name] for name in self.names]
        except (KeyError, EgraphOptError, MemoryError):
            return found
        return replace(
            found, original_float64=_error(reference, expected), optimized_float64=_error(reference, answers[0])
        )


def _error(reference: Sequence[np.ndarray], values: Sequence[Any]) -> float:
    """Largest error relative to the largest magnitude of each output."""
    with np.errstate(all="ignore"):
        errors = [
            float(
                np.nanmax(np.abs(np.asarray(value, np.float64) - exact)) / max(float(np.nanmax(np.abs(exact))), 1e-300)
            )
            for exact, value in zip(reference, values, strict=True)
            if exact.size
        ]
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
