"""How much of current architectures is inside the algebra, and what the optimizer makes of them unmeasured.

``python -m bench.coverage`` runs the reduced architectures and the real graphs of the onnx package, ``--full`` the
architectures in the sizes of their originals as well, ``FILE.onnx …`` any other model. Every model is optimized with
``cost="static"``, native and portable, and what comes back is compared with the original; nothing is timed.
"""

import argparse
import datetime
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import onnx
import onnx.shape_inference

from bench.machine import available_memory, current_commit, describe_machine
from bench.models.architectures import ARCHITECTURES, FULL
from bench.models.light import light
from bench.models.light import names as light_names

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "coverage.jsonl"
LEAST_SHARE = 0.95
# What begins the names of full-size architectures and of the real graphs of the onnx package.
FULL_PREFIX, LIGHT_PREFIX = "full/", "light/"
# A model is left out where less is free.
LEAST_GIB = 4.0


@dataclass(frozen=True)
class Coverage:
    """Nodes of a model: ``folded`` ones are constants; of the others ``algebraic`` are terms, ``outside`` are not."""

    name: str
    folded: int
    algebraic: int
    regions: int
    outside: Mapping[str, int]

    @property
    def nodes(self) -> int:
        """Nodes that are not folded."""
        return self.algebraic + sum(self.outside.values())

    @property
    def share(self) -> float:
        """Algebraic nodes among those that are not folded."""
        return self.algebraic / self.nodes if self.nodes else 1.0


@dataclass(frozen=True)
class Outcome:
    """What the optimizer made of a model: ``unchanged`` says why it is the original, ``reverted`` why regions are.

    ``error`` is the largest difference of an output as a share of its largest magnitude; None where nothing was
    compared. ``after`` counts the nodes of the result, ``kernels`` those that call generated kernels.
    """

    portable: bool
    unchanged: str = ""
    reverted: tuple[str, ...] = ()
    error: float | None = None
    after: int = 0
    kernels: int = 0
    seconds: float = 0.0
    phases: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A model's coverage and outcome; ``failure`` says why there is none. ``peak_mib`` is the most memory held."""

    name: str
    coverage: Coverage | None = None
    outcome: Outcome | None = None
    peak_mib: float = 0.0
    failure: str = ""

    @property
    def problem(self) -> str:
        """Why this is not as it should be: accepted, verified, changed, nothing reverted, enough of it inside."""
        if self.failure or self.coverage is None or self.outcome is None:
            return self.failure or "nothing was done"
        if self.outcome.unchanged:
            return "; ".join([f"unchanged: {self.outcome.unchanged}", *self.outcome.reverted])
        if self.outcome.error is None:
            return "not verified"
        if self.outcome.reverted:
            return f"{len(self.outcome.reverted)} reverted: {self.outcome.reverted[0]}"
        return "" if self.coverage.share >= LEAST_SHARE else "too many nodes are outside"


def coverage(name: str, model: onnx.ModelProto | Path) -> Coverage:
    """How much of a model is inside the algebra."""
    from egraph_opt.frontends.onnx_reader import load
    from egraph_opt.frontends.regions import partition

    loaded = load(model)
    parts = partition(loaded)
    outside = dict(sorted(Counter(loaded.nodes[i].op_type for i in parts.opaque).items()))
    algebraic = len(loaded.nodes) - len(loaded.folded) - len(parts.opaque)
    return Coverage(name, len(loaded.folded), algebraic, len(parts.regions), outside)


def outcome(model: onnx.ModelProto | Path, *, portable: bool = False) -> Outcome:
    """What the optimizer makes of a model when it measures nothing, of all of it: no region is left for being cheap."""
    from egraph_opt.pipeline import optimize

    begun = time.perf_counter()
    with patch("egraph_opt.candidates.CHEAPER", 0.0):
        report = optimize(model, cost="static", portable=portable).report
    return Outcome(
        portable,
        report.unchanged_because,
        tuple(f"region {entry.region} ({entry.nodes} nodes): {entry.reason}" for entry in report.reverted),
        report.accuracy.max_relative if report.accuracy is not None else None,
        sum(report.operators_after.values()) + report.generated_kernels,
        report.generated_kernels,
        time.perf_counter() - begun,
        {phase: round(seconds, 2) for phase, seconds in report.seconds.items()},
        report.notes,
    )


def build(name: str) -> onnx.ModelProto | Path:
    """The model of a name, or the file; KeyError for an unknown name."""
    if name.endswith(".onnx"):
        return Path(name)
    if name.startswith(LIGHT_PREFIX):
        return with_logits(light(name.removeprefix(LIGHT_PREFIX)))
    if name.startswith(FULL_PREFIX):
        return FULL[name.removeprefix(FULL_PREFIX)](1)
    return ARCHITECTURES[name](1)


def with_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what its last Softmax reads as an output, too: with drawn weights one class takes it all."""
    outputs = {entry.name for entry in model.graph.output}
    last = [node for node in model.graph.node if node.op_type == "Softmax" and node.output[0] in outputs]
    read = {node.input[0] for node in last} - outputs
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    model.graph.output.extend(entry for entry in inferred if entry.name in read)
    return model


def covered(name: str, portable: bool) -> Row:
    """The row of one model, made in this process; whatever fails becomes the row's failure."""
    title = Path(name).stem if name.endswith(".onnx") else name
    try:
        model = build(name)
        found = coverage(title, model)
        row = Row(title, found, outcome(model, portable=portable))
    except Exception as error:
        return Row(title, failure=f"{type(error).__name__}: {error}")
    return Row(title, row.coverage, row.outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def covered_apart(name: str, portable: bool) -> Row:
    """The same in a process of its own: its memory is its own, and a crash costs only this row."""
    if available_memory() < LEAST_GIB:
        return Row(name, failure=f"less than {LEAST_GIB:.0f} GiB of memory are free")
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(covered, name, portable).result()
    except Exception as error:
        return Row(name, failure=f"{type(error).__name__}: {error}")


def table(found: Sequence[Coverage]) -> str:
    """The shares as text."""
    lines = [
        "| model | folded | algebraic | outside | share | regions | what is outside |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        lines.append(
            f"| {one.name} | {one.folded} | {one.algebraic} | {sum(one.outside.values())} | {100 * one.share:.1f} % "
            f"| {one.regions} | {_counted(one.outside)} |"
        )
    return "\n".join(lines)


HEADER = (
    "| model | mode | nodes | inside | regions | nodes after | kernels | error | seconds | MiB | outside, problems |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def format_row(row: Row, portable: bool) -> str:
    """A line of the table of outcomes."""
    mode = "portable" if portable else "native"
    if row.coverage is None or row.outcome is None:
        return f"| {row.name} | {mode} | failed: {row.failure} |"
    found, made = row.coverage, row.outcome
    error = "–" if made.error is None else f"{made.error:.1e}"
    remarks = "; ".join(text for text in (_counted(found.outside), row.problem) if text)
    return (
        f"| {row.name} | {mode} | {found.nodes} | {100 * found.share:.1f} % | {found.regions} | {made.after} "
        f"| {made.kernels} | {error} | {made.seconds:.1f} | {row.peak_mib:.0f} | {remarks} |"
    )


def _counted(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {operator}" for operator, count in operators.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when a model is not as it should be."""
    options = _parse(arguments)
    modes = [portable for portable in (False, True) if options.only in (None, "portable" if portable else "native")]
    surroundings = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": current_commit(),
        "machine": describe_machine(),
    }
    print(HEADER)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    problems = 0
    for name in options.models:
        for portable in modes:
            row = covered_apart(name, portable)
            problems += bool(row.problem)
            print(format_row(row, portable), flush=True)
            with options.output.open("a", encoding="utf-8") as output:
                plain = {**surroundings, "portable": portable, "problem": row.problem, **asdict(row)}
                output.write(json.dumps(plain) + "\n")
    print(f"\n{len(options.models)} models, {problems} problems; results appended to {options.output}")
    return 1 if problems else 0


def known() -> tuple[str, ...]:
    """All names: the reduced architectures, the real graphs, the architectures in full size."""
    lights = (LIGHT_PREFIX + name for name in light_names())
    return (*ARCHITECTURES, *lights, *(FULL_PREFIX + name for name in FULL))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help=f"{', '.join(known())}, or FILE.onnx")
    parser.add_argument("--full", action="store_true", help="the architectures in full size as well")
    parser.add_argument("--only", choices=("native", "portable"), help="not the other mode")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON lines file to append to")
    options = parser.parse_args(arguments)
    options.models = options.models or [n for n in known() if options.full or not n.startswith(FULL_PREFIX)]
    for name in options.models:
        if not name.endswith(".onnx") and name not in known():
            parser.error(f"no model is called {name!r}; the names are: {', '.join(known())}")
    return options


if __name__ == "__main__":
    sys.exit(main())
