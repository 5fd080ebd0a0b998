"""Compare and time models without optimizing anything: what ``egraph-opt check`` and ``egraph-opt bench`` do."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egraph_opt.backends import runtimes
from egraph_opt.backends.model_timer import TimedModel, time_models
from egraph_opt.backends.onnxruntime import input_specs, output_specs, random_inputs, run
from egraph_opt.errors import BackendMissing, InputRejected, UsageError, VerificationFailed
from egraph_opt.runtime.cache import trusted_library
from egraph_opt.runtime.compare import OutputError, Tolerance, compare_outputs, worst
from egraph_opt.runtime.timing import Comparison, Spread

Model = str | os.PathLike[str] | bytes
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Errors of the second model against the first, per output and run; `seeds` replays each run."""

    runs: tuple[tuple[OutputError, ...], ...]
    seeds: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """Whether every output of every run is within its tolerance."""
        return all(error.within for run_errors in self.runs for error in run_errors)

    @property
    def worst(self) -> tuple[float, float]:
        """The largest absolute error and the largest one relative to the magnitude of its output."""
        return worst([error for run_errors in self.runs for error in run_errors])


def check(
    a: Model,
    b: Model,
    *,
    seed: int = 0,
    runs: int = 1,
    shapes: Shapes | None = None,
    tolerance: Tolerance | None = None,
    threads: int | None = None,
    trust_kernels: bool = False,
    runtime: str | Sequence[str] = "",
) -> CheckResult:
    """Feed both models the same random inputs (seeds `seed`, `seed + 1`, …) and compare all outputs.

    A model file's kernel library beside it is loaded where this user built it, or with `trust_kernels`. Each model is
    run by what its metadata say, or by `runtime`: one for both, or one for each. Raises InputRejected where a model
    does not load or `a` does not run, VerificationFailed where inputs or outputs differ in name or type, or only `b`
    does not run, BackendMissing where a runtime is not installed.
    """
    sessions = [_session(timed, threads) for timed in _timed([a, b], trust_kernels, runtime)]
    _same_signature(*sessions)
    names = [spec.name for spec in output_specs(sessions[0])]
    results = []
    seeds = tuple(range(seed, seed + runs))
    for number in seeds:
        inputs = random_inputs(input_specs(sessions[0]), seed=number, shapes=shapes)
        expected = run(sessions[0], inputs)
        try:
            actual = run(sessions[1], inputs)
        except InputRejected as error:
            raise VerificationFailed(
                f"the second model fails where the first one runs (seed {number}): {error}"
            ) from error
        results.append(compare_outputs(expected, actual, names=names, tolerance=tolerance))
    return CheckResult(tuple(results), seeds)


def benchmark(
    a: Model,
    b: Model | None = None,
    *,
    rounds: int = 9,
    seed: int = 0,
    shapes: Shapes | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    trust_kernels: bool = False,
    runtime: str | Sequence[str] = "",
) -> Comparison | Spread:
    """Latency in milliseconds: of one model its Spread, of two models their interleaved Comparison.

    Each model is run by what its metadata say, or by `runtime`: one for both, or one for each. Sessions of one runtime
    share one thread pool, since two spinning pools would slow each other down; two runtimes take turns in two
    processes. Raises InputRejected where a model does not load or run, BackendMissing where a runtime is not installed.
    """
    samples = time_models(
        _timed([a] if b is None else [a, b], trust_kernels, runtime),
        rounds=rounds,
        seed=seed,
        shapes=shapes,
        threads=threads,
        timeout=timeout,
    )
    return Spread.of(samples[0]) if b is None else Comparison.of(samples[0], samples[1])


def _session(timed: TimedModel, threads: int | None) -> Any:
    return runtimes.find(timed.runtime).load(timed.model, kernel_library=timed.kernel_library, threads=threads)


def _timed(models: Sequence[Model], trust_kernels: bool, runtime: str | Sequence[str]) -> list[TimedModel]:
    """The models with their kernel libraries and runtimes, which are all there."""
    wanted = [runtime] if isinstance(runtime, str) else list(runtime)
    if len(wanted) not in (1, len(models)):
        raise UsageError(f"{len(wanted)} runtimes are given; give one, or one for each model")
    found = []
    for model, name in zip(models, wanted * (len(models) // len(wanted)), strict=True):
        library = None
        if not isinstance(model, bytes):
            model = Path(model)
            if not model.is_file():
                raise InputRejected(f"{model} is not a file" if model.exists() else f"{model} does not exist")
            library = trusted_library(model, trust_any=trust_kernels)
        chosen = name or runtimes.declared(model)
        missing = runtimes.problem(chosen)
        if missing:
            raise BackendMissing(missing)
        found.append(TimedModel(model, library, runtime=chosen))
    return found


def _same_signature(a: Any, b: Any) -> None:
    for what, specs in (("input", input_specs), ("output", output_specs)):
        one, other = ([(spec.name, spec.type) for spec in specs(session)] for session in (a, b))
        if one != other:
            texts = [", ".join(f"{name}: {kind}" for name, kind in side) for side in (one, other)]
            raise VerificationFailed(f"the {what}s differ: ({texts[0]}) and ({texts[1]})")
