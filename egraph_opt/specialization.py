"""Models with symbolic dimensions: bound to one length, or given programs for several lengths beside the original."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from egraph_opt.backends.model_timer import DevicesLost, TimedModel
from egraph_opt.backends.runner import LocalRunner
from egraph_opt.contest import TIMING_ROUNDS, is_faster
from egraph_opt.errors import InputRejected, LimitReached, UsageError, one_line
from egraph_opt.frontends.onnx_symbols import bind, input_shapes, lengths_of, symbols
from egraph_opt.limits import Limits
from egraph_opt.result import Result
from egraph_opt.run import Options
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent
from egraph_opt.runtime.report import Accuracy, Candidates, Latency, Report, Specialization
from egraph_opt.runtime.timing import Comparison

if TYPE_CHECKING:
    import onnx

    from egraph_opt.candidates import Candidate
    from egraph_opt.runtime.explanation import Explanation
    from egraph_opt.verification import Judge

# A length for a symbolic dimension, several of them, or the whole shape of an input.
Shapes = Mapping[str, int | Sequence[int]]
Lengths = dict[str, int]
# Seconds after which timing the original against the whole is enough.
TIMING_SECONDS = 20.0


class OptimizeOne(Protocol):
    """Optimizes a model as it is; ``label`` is what the report calls it."""

    def __call__(
        self, model: onnx.ModelProto, *, label: str, time_limit: float | None, progress: ProgressCallback
    ) -> Result: ...


@dataclass
class Specializer:
    """Optimizes models for some shapes of their inputs, and compares the whole with the original."""

    optimize: OptimizeOne
    options: Options
    progress: ProgressCallback = silent
    _started: float = field(default_factory=time.monotonic)

    def run(self, model: str | Path | onnx.ModelProto, shapes: Shapes) -> Result:
        """The optimized model. Where every dimension gets one length, its inputs have it, too; otherwise the inputs
        stay as they are, and the model chooses at run time between the programs for these lengths and the original.

        Raises UsageError for names and lengths that do not fit the model.
        """
        from egraph_opt.frontends.onnx_reader import load

        original = load(model).model
        label = Path(model).name if isinstance(model, str | Path) else original.graph.name or "the model"
        fixed, several = resolve(original, shapes)
        bound = bind(original, fixed)
        if not several:
            return self.optimize(bound, label=label, time_limit=self.options.time_limit, progress=self.progress)
        if self.options.runtime != "onnxruntime":
            raise UsageError("a model for several lengths is one for onnxruntime; give one length, or no --runtime")
        choices = [dict(zip(several, lengths, strict=True)) for lengths in itertools.product(*several.values())]
        programs = [self._program(bound, lengths, label, len(choices) - i) for i, lengths in enumerate(choices)]
        with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder:
            return _Assembly(self, bound, label, programs, Path(folder)).result()

    def _program(self, model: onnx.ModelProto, lengths: Lengths, label: str, left: int) -> _Program:
        name = text_of(lengths)

        def tell(event: Progress) -> None:
            self.progress(replace(event, message=f"{name}: {event.message}".removesuffix(": ")))

        # What is left is for the other lengths and for the whole.
        limit = None if self.options.time_limit is None else max(self.left() / (left + 1), 0.1)
        result = self.optimize(bind(model, lengths), label=f"{label} ({name})", time_limit=limit, progress=tell)
        return _Program(lengths, result, result.report.unchanged_because)

    def left(self) -> float:
        """Seconds until the time limit."""
        limit = self.options.time_limit
        return inf if limit is None else self._started + limit - time.monotonic()


def text_of(lengths: Mapping[str, int]) -> str:
    """Lengths for people: ``N=8, L=128``."""
    return ", ".join(f"{name}={length}" for name, length in lengths.items())


def resolve(model: onnx.ModelProto, shapes: Shapes) -> tuple[Lengths, dict[str, list[int]]]:
    """The dimensions that get one length, and those that get several."""
    known = symbols(model)
    inputs = {value.name for value in model.graph.input}
    fixed, several = Lengths(), dict[str, list[int]]()
    for name, given in shapes.items():
        lengths = [given] if isinstance(given, int) else list(given)
        if not lengths or any(length < 1 for length in lengths):
            raise UsageError(f"lengths of {name!r} are whole numbers from 1 on, not {given!r}")
        if name in known:
            if isinstance(given, int):
                fixed[name] = given
            else:
                several[name] = list(dict.fromkeys(lengths))
        elif name in inputs:
            for symbol, length in lengths_of(model, name, lengths).items():
                if fixed.setdefault(symbol, length) != length:
                    raise UsageError(f"dimension {symbol!r} cannot be both {fixed[symbol]} and {length}")
        else:
            raise UsageError(f"the inputs have no symbolic dimension {name!r}; they have {', '.join(known) or 'none'}")
    return fixed, {name: lengths for name, lengths in several.items() if name not in fixed}


@dataclass
class _Program:
    """What was found for some lengths, and how it does inside the whole."""

    lengths: Lengths
    result: Result
    dropped: str = ""
    latency: Latency | None = None
    accuracy: Accuracy | None = None


@dataclass
class _Assembly:
    """Puts programs together into one model and holds it against the original."""

    run: Specializer
    original: onnx.ModelProto
    label: str
    programs: Sequence[_Program]
    folder: Path
    notes: list[str] = field(default_factory=list)
    other: Specialization | None = None
    _reference: Path = field(init=False)
    _judges: dict[str, Judge] = field(default_factory=dict)

    def result(self) -> Result:
        """The model with all programs that are right and faster; the original where there are none."""
        from egraph_opt.candidates import store

        begun = time.monotonic()
        self._reference = store(self.original, self.folder / "original")
        for number in range(len(self.programs) + 1):
            kept = [program for program in self.programs if not program.dropped]
            if not kept:
                break
            self.run.progress(Progress("verify", "all programs in one model"))
            candidate = self._assemble(kept, self.folder / f"assembled{number}")
            self._verify(kept, candidate.stored)
            self._time([program for program in kept if not program.dropped], candidate.stored)
            if not any(program.dropped for program in kept):
                report = self._report(candidate, time.monotonic() - begun)
                return Result(candidate.model, report, candidate.library, self.run.options.threads, candidate.compiled)
        return Result(self.original, self._report(None, time.monotonic() - begun), None, self.run.options.threads)

    def _assemble(self, kept: Sequence[_Program], folder: Path) -> Candidate:
        from egraph_opt.backends import tvm_build
        from egraph_opt.backends.environment import working_compiler
        from egraph_opt.candidates import Candidate, store
        from egraph_opt.explanation import attach
        from egraph_opt.frontends.onnx_dispatch import dispatch

        model = dispatch(self.original, [(program.lengths, program.result.model) for program in kept])
        explanation = self._explanation(kept)
        if explanation is not None:
            attach(model, explanation)
        path, library = store(model, folder), None
        compiled = {found.kernel.name: found for program in kept for found in program.result.compiled}
        if compiled:
            library = tvm_build.build_library(
                [found.kernel for found in compiled.values()],
                folder / "model.kernels.so",
                compiler=str(working_compiler()[0]),
                objects={name: found.code for name, found in compiled.items()},
            )
        return Candidate(model, TimedModel(path, library), {}, tuple(compiled), compiled=tuple(compiled.values()))

    def _explanation(self, kept: Sequence[_Program]) -> Explanation | None:
        """What the programs carry, together; their parts are called by their lengths."""
        from egraph_opt.runtime.explanation import KEY, unpacked

        found = []
        for program in kept:
            texts = [entry.value for entry in program.result.model.metadata_props if entry.key == KEY]
            found += [(program, unpacked(text)) for text in texts]
        if not found:
            return None
        parts = [
            replace(part, name=f"{text_of(program.lengths)}: {part.name}")
            for program, explanation in found
            for part in explanation.parts
        ]
        kept_parts = sum(explanation.kept for _, explanation in found)
        return replace(found[0][1], model=self.label, parts=tuple(parts), kept=kept_parts)

    def _judge(self, lengths: Lengths) -> Judge:
        """The original's answers on inputs of these lengths."""
        from egraph_opt.verification import Judge

        name, options = text_of(lengths), self.run.options
        if name not in self._judges:
            deadline = time.monotonic() + self.run.left()
            shapes = input_shapes(self.original, lengths)
            self._judges[name] = Judge(
                self._reference, options.verify, options.seed, options.threads, self.label, deadline, shapes=shapes
            )
        return self._judges[name]

    def _verify(self, kept: Sequence[_Program], model: TimedModel) -> None:
        """Compare with the original for all lengths of the programs and for others; drop what is wrong."""
        if not self.run.options.verify:
            return
        for program in kept:
            judge = self._judge(program.lengths)
            verdict = judge.problem or judge.verdict(model, ())
            if isinstance(verdict, str):
                program.dropped = verdict
            program.accuracy = verdict if isinstance(verdict, Accuracy) else None
        for lengths in self._others():
            judge = self._judge(lengths)
            if judge.problem:
                continue
            verdict = judge.verdict(model, ())
            if isinstance(verdict, str):
                for program in kept:
                    program.dropped = f"wrong at {text_of(lengths)}, where the original should run: {verdict}"
            self.other = Specialization(lengths, accuracy=verdict if isinstance(verdict, Accuracy) else None)
            return
        self.notes.append("no other lengths were found that the original runs on, so no others were tested")

    def _others(self) -> Iterator[Lengths]:
        """Lengths that no program is for, to try the original on."""
        taken = [program.lengths for program in self.programs]
        first = taken[0]
        top = {name: max(lengths[name] for lengths in taken) for name in first}
        changed = (
            {name: length + 1 for name, length in top.items()},
            {name: 2 * length for name, length in top.items()},
            {name: length - 1 for name, length in top.items()},
        )
        for other in changed:
            for names in (tuple(first), *((name,) for name in first if len(first) > 1)):
                tried = {name: other[name] if name in names else first[name] for name in first}
                if tried not in taken and min(tried.values()) >= 1:
                    yield tried

    def _time(self, kept: Sequence[_Program], model: TimedModel) -> None:
        """Time the original and the whole for all lengths; drop the programs that are not faster."""
        if not self.run.options.measured:
            return
        for program in kept:
            try:
                found = self._compared(program.lengths, model)
            except (InputRejected, LimitReached, DevicesLost) as error:
                program.latency, program.dropped = None, one_line(str(error))
                continue
            program.latency = Latency.of(found)
            if not is_faster(found):
                program.dropped = f"{found.ratio.median:.2f}x inside the whole is not worthwhile"
        if self.other is not None and not any(program.dropped for program in kept):
            with suppress(InputRejected, LimitReached, DevicesLost):
                self.other = replace(self.other, latency=Latency.of(self._compared(self.other.lengths, model)))

    def _compared(self, lengths: Lengths, model: TimedModel) -> Comparison:
        """The original against the model on inputs of these lengths.

        Raises InputRejected where one of them does not run, LimitReached where there is no time left.
        """
        self.run.progress(Progress("time", f"{text_of(lengths)}: original and optimized, in turns"))
        left = self.run.left()
        samples = (self.run.options.runner or LocalRunner()).time_models(
            [TimedModel(self._reference), model],
            rounds=TIMING_ROUNDS,
            seed=self.run.options.seed,
            shapes=input_shapes(self.original, lengths),
            fill=self._judge(lengths).fill,
            threads=self.run.options.threads,
            enough_seconds=max(min(TIMING_SECONDS, left / 2), 0.1),
            limits=Limits() if left == inf else Limits(time.monotonic() + max(left, 0.0) + 1),
        )
        return Comparison.of(*samples)

    def _report(self, chosen: Candidate | None, seconds: float) -> Report:
        """One report of all runs."""
        from egraph_opt.frontends.onnx_model import all_nodes

        reports = [program.result.report for program in self.programs]
        phases = dict.fromkeys(phase for report in reports for phase in report.seconds)
        spent = {phase: sum(report.seconds.get(phase, 0.0) for report in reports) for phase in phases}
        spent["all lengths in one"] = seconds
        kernels = chosen.kernels if chosen is not None else ()
        after = (
            Counter(node.op_type for node in all_nodes(chosen.model.graph)) if chosen is not None else Counter[str]()
        )
        before = Counter(node.op_type for node in self.original.graph.node)
        programs = [
            Specialization(program.lengths, program.latency, program.accuracy, program.dropped)
            for program in self.programs
        ]
        others = [self.other] if self.other is not None and chosen is not None else []
        reasons = dict.fromkeys(program.dropped for program in self.programs)
        return replace(
            reports[0],
            model=self.label,
            operators_before=dict(before),
            operators_after={name: n for name, n in after.items() if name not in kernels},
            generated_kernels=sum(after[name] for name in kernels),
            kernels=tuple(sorted(kernels)),
            latency=None,
            accuracy=None,
            seconds=spent,
            saturation=tuple(
                replace(region, region=f"{text_of(program.lengths)}: {region.region}")
                for program in self.programs
                for region in program.result.report.saturation
            ),
            candidates=Candidates(
                *(sum(getattr(report.candidates, f.name) for report in reports) for f in fields(Candidates))
            ),
            unchanged_because="" if chosen is not None else "; ".join(reasons),
            reverted=tuple(
                replace(entry, region=f"{text_of(program.lengths)}: {entry.region}")
                for program in self.programs
                for entry in program.result.report.reverted
            ),
            notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)) + tuple(self.notes),
            warnings=tuple(dict.fromkeys(warning for report in reports for warning in report.warnings)),
            specializations=(*programs, *(replace(other, other=True) for other in others)),
        )
