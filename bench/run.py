"""Optimize the benchmark models and time them against the originals in onnxruntime: `python -m bench.run`."""

import argparse
import datetime
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from bench.ceilings import Ceilings, measure_ceilings
from bench.flops import multiply_adds
from bench.machine import available_cores, available_memory, current_commit, describe_machine
from bench.models import find, names
from bench.timing import compare
from egraph_opt.backends.runtimes import CHOICES, DEFAULT

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "cpu.jsonl"
_STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_ROW = "{:26} {:>8} {:>11} {:>11} {:>8} {:>13} {:>7} {:>7} {:>8} {:>9}"
_HEADER = _ROW.format(
    "model", "GMAC", "original ms", "optimized", "speed-up", "quartiles", "of GEMM", "kernels", "error", "seconds"
)


@dataclass(frozen=True)
class Prepared:
    """What is known once a model is built and optimized."""

    multiply_adds: int
    kernels: int
    seconds: float
    runtime: str = ""


@dataclass(frozen=True)
class Row:
    """A model's results; `failure` says why there are none."""

    model: str
    multiply_adds: int = 0
    original_ms: float | None = None
    optimized_ms: float | None = None
    ratio_median: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    rounds: int = 0
    largest_error: float | None = None
    optimize_seconds: float | None = None
    generated_kernels: int | None = None
    runtime: str = ""
    failure: str | None = None


def prepare(name: str, original: Path, optimized: Path, optimizer: str, runtime: str = DEFAULT) -> Prepared | str:
    """Build a model, optimize it and write both files; runs in a process of its own. A failure is returned as text.

    The process ends before the timing, so no thread of the optimizer is left and a crash costs only this model.
    """
    try:
        entry, batch = find(name)
        model = entry.build(batch)
        onnx.save(model, original)
        work = multiply_adds(model)
        start = time.perf_counter()
        if optimizer == "none":
            onnx.save(model, optimized)
        else:
            from egraph_opt import optimize

            found = optimize(original, runtime=runtime)
            found.save(optimized)
            runtime = found.runtime
        seconds = time.perf_counter() - start
        return Prepared(work, _generated_kernels(optimized), seconds, runtime)
    except Exception as error:
        return _describe(error)


def bench_model(name: str, *, rounds: int, threads: int, seed: int, optimizer: str, runtime: str = DEFAULT) -> Row:
    """Build, optimize and time one model; whatever fails becomes the row's failure."""
    with tempfile.TemporaryDirectory(prefix="egraph-opt-bench-") as folder:
        original, optimized = Path(folder) / "original.onnx", Path(folder) / "optimized.onnx"
        try:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                prepared = pool.submit(prepare, name, original, optimized, optimizer, runtime).result()
            if isinstance(prepared, str):
                return Row(name, failure=prepared)
            lean = find(name)[0].memory > 0
            comparison = compare(original, optimized, rounds=rounds, threads=threads, seed=seed, lean=lean)
        except Exception as error:
            return Row(name, failure=_describe(error))
    original_ms, optimized_ms = comparison.milliseconds()
    q1, median, q3 = comparison.speed_up()
    return Row(
        name,
        multiply_adds=prepared.multiply_adds,
        original_ms=original_ms,
        optimized_ms=optimized_ms,
        ratio_median=median,
        ratio_q1=q1,
        ratio_q3=q3,
        rounds=len(comparison.original),
        largest_error=comparison.largest_error,
        optimize_seconds=prepared.seconds,
        generated_kernels=prepared.kernels,
        runtime=prepared.runtime,
    )


def format_row(row: Row, ceilings: Ceilings) -> str:
    """The row of the table."""
    if row.failure is not None:
        return f"{row.model:26} failed: {row.failure}"
    assert row.optimized_ms is not None
    share = 2 * row.multiply_adds / (row.optimized_ms * 1e6) / ceilings.gemm_gflops
    return _ROW.format(
        row.model,
        f"{row.multiply_adds / 1e9:.3f}",
        f"{row.original_ms:.3f}",
        f"{row.optimized_ms:.3f}",
        f"{row.ratio_median:.2f}x",
        f"{row.ratio_q1:.2f} – {row.ratio_q3:.2f}",
        f"{share:.0%}",
        str(row.generated_kernels),
        f"{row.largest_error:.1e}",
        f"{row.optimize_seconds:.1f}",
    ) + ("" if row.runtime == DEFAULT else f"  in {row.runtime}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when a model failed."""
    options = _parse(arguments)
    selected = options.models
    machine = describe_machine()
    surroundings = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": current_commit(),
        "machine": machine,
        "threads": options.threads,
        "optimizer": options.optimizer,
    }
    ceilings = measure_ceilings(options.threads)
    print(
        f"{machine['cpu']}, {options.threads} threads, "
        f"MatMul {ceilings.gemm_gflops:.0f} GFLOP/s, copy {ceilings.copy_gib:.1f} GiB/s\n\n{_HEADER}",
        flush=True,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    for name in selected:
        needed, available = find(name)[0].memory, available_memory()
        if needed > available:
            print(f"{name:26} skipped: needs {needed:.0f} GiB of memory, {available:.0f} are free", flush=True)
            continue
        row = bench_model(
            name,
            rounds=options.rounds,
            threads=options.threads,
            seed=options.seed,
            optimizer=options.optimizer,
            runtime=options.runtime,
        )
        failures += row.failure is not None
        print(format_row(row, ceilings), flush=True)
        with options.output.open("a", encoding="utf-8") as output:
            output.write(json.dumps({**surroundings, **asdict(row), "ceilings": asdict(ceilings)}) + "\n")
    print(f"\n{len(selected)} models, {failures} failed; results appended to {options.output}")
    return 1 if failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--models", type=_names, default=names(), metavar="A,B", help="models (default: all)")
    parser.add_argument("--rounds", type=_positive, default=9, help="rounds for each model (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, default=available_cores(), help="threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON lines file to append to")
    parser.add_argument(
        "--optimizer",
        choices=("egraph-opt", "none"),
        default="egraph-opt",
        help="none times each model against itself: the noise of the machine",
    )
    parser.add_argument(
        "--runtime",
        choices=CHOICES,
        default=DEFAULT,
        help="optimize for another runtime, or for the fastest one (auto); the original stays in onnxruntime",
    )
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    selected = tuple(name for name in text.split(",") if name)
    for name in selected:
        try:
            find(name)
        except KeyError as error:
            raise argparse.ArgumentTypeError(error.args[0]) from None
    return selected


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _generated_kernels(path: Path) -> int:
    """Nodes of a model file outside the standard domains: calls of generated kernels."""
    model = onnx.load(path, load_external_data=False)
    return sum(node.domain not in _STANDARD_DOMAINS for node in model.graph.node)


def _describe(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
