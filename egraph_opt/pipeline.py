"""The whole story: model -> regions -> e-graphs -> plans -> a checked, timed, faster model. Read this first."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.errors import InputRejected, LimitReached, UsageError, one_line
from egraph_opt.limits import OUT_OF_MEMORY, OUT_OF_TIME
from egraph_opt.result import Result as Result
from egraph_opt.run import BUILDING_SHARE, ENDING_SHARE, EXPLAINING_SHARE, SLOWEST, Options, Run
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent
from egraph_opt.runtime.report import PeakMemory, Report

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import onnx

    from egraph_opt.backends.session_process import SessionProcess
    from egraph_opt.candidates import Candidate
    from egraph_opt.explanation import Origins
    from egraph_opt.extract.step_info import CostModel
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.packs import Pack
    from egraph_opt.saturation import Saturator
    from egraph_opt.verification import Judge


def optimize(
    model: str | Path | onnx.ModelProto,
    *,
    target: str = "cpu",
    portable: bool = False,
    verify: int = 1,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    cost: str | CostModel = "measured",
    peak_memory: int | None = None,
    slowest: float = SLOWEST,
    prove: bool = False,
    profile_db: str | Path | None = None,
    rules: str | Sequence[str | Pack] = "",
    fp: str = "default",
    shapes: Mapping[str, int | Sequence[int]] | None = None,
    runtime: str = "onnxruntime",
    executor: Executor | None = None,
    trials: int = 0,
    tuning_seconds: float = 300.0,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> Result:
    """A faster model with the same inputs, outputs and answers; the original itself where nothing faster is found.

    ``verify`` random inputs are compared on all outputs. ``time_limit`` bounds the whole in seconds; what was found
    by then counts. ``memory_limit`` bounds what this process and all that it starts hold, in bytes: where it is
    reached, less is tried. ``cost`` is "measured" (library calls and kernels are timed on this machine), "static" (the
    plan that should be fastest, untimed), the name of another objective ("memory", "traffic", "energy", "launches") or
    any cost model, a function of one step: see :mod:`egraph_opt.costs`. ``peak_memory`` are the bytes that intermediate
    buffers may take at once. What is not chosen by its time takes at most ``slowest`` times the expected time of the
    fastest. With ``prove`` measuring goes on, for 20 minutes at most, until no other program can be more than 3 %
    faster by what its steps take; otherwise it ends where that is unlikely. The report gives the bound.
    ``rules`` adds rule packs and switches rules off ("+mine.py,-epilogue"), ``fp`` says what rules may do to
    floating-point numbers ("strict", "default" or "real"): see ``egraph_opt.packs.select``.
    ``shapes`` gives lengths to symbolic dimensions of the inputs: ``{"N": 8}`` makes a model for this length only,
    ``{"N": [1, 4, 16]}`` one that has a program for each of them and the original for all others, chosen at run time;
    ``{"data": (1, 3, 224, 224)}`` is the whole shape of an input, ``data[0]`` an axis that has no name.
    ``runtime`` may be "openvino" or "torch" for a model of standard operators that this runtime runs, by a plan chosen
    by what steps cost there, or "auto" for the fastest of all that are installed; the result is never slower than the
    original in onnxruntime, and its metadata say what runs it.
    ``executor`` is any ``concurrent.futures.Executor``: steps and whole models are timed where it runs functions, on
    machines of one kind, each of which makes one measurement at a time, and the program is for these machines. It is
    not shut down. Devices of a TVM tracker are a ``egraph_opt.backends.tracker.TrackerExecutor``.
    ``trials`` schedules, found by MetaSchedule in at most ``tuning_seconds``, are tried on the generated kernels that
    take most of the time; the profile database keeps them. Schedules of your own (``egraph_opt.schedule``) are part of
    a rule pack.
    ``jobs`` are the processes that search side by side, as many as there are processors by default; the result is the
    same for any number of them.

    Raises InputRejected for a model that cannot be read or that onnxruntime does not load, UsageError for a wrong
    option, BackendMissing for a runtime that is not installed, LimitReached where a limit is reached before it is known
    whether onnxruntime loads the model.
    """
    if target != "cpu":
        raise UsageError(f"unknown target {target!r}; known: cpu")
    if verify < 0 or (time_limit is not None and time_limit <= 0) or (threads is not None and threads < 1):
        raise UsageError("verify is at least 0, time_limit above 0 and threads at least 1")
    if (memory_limit is not None and memory_limit <= 0) or (peak_memory is not None and peak_memory < 0):
        raise UsageError("memory_limit is above 0 and peak_memory at least 0")
    if not slowest >= 1:
        raise UsageError("slowest is at least 1")
    if jobs is not None and jobs < 1:
        raise UsageError("jobs is at least 1")
    by, objective = _cost(cost)
    if prove and by != "measured":
        raise UsageError("only what is measured can be proven")
    from egraph_opt.backends.environment import usable_threads
    from egraph_opt.backends.processes import ProcessExecutor
    from egraph_opt.backends.session_process import SessionProcess
    from egraph_opt.packs import select
    from egraph_opt.saturation import Saturator

    selection = select(rules, fp)
    database = Path(profile_db) if profile_db is not None else None
    options = Options(
        portable,
        verify,
        time_limit,
        memory_limit,
        seed,
        threads,
        by,
        database,
        objective,
        peak_memory,
        slowest,
        prove,
        runtime,
    )
    options = replace(options, jobs=jobs or usable_threads())
    if trials < 0 or tuning_seconds <= 0:
        raise UsageError("trials is at least 0 and tuning_seconds above 0")
    if trials and (portable or not options.measured or runtime != "onnxruntime"):
        raise UsageError("tuning needs generated kernels and measurements: no other cost, runtime or portable output")
    options = replace(options, trials=trials, tuning_seconds=tuning_seconds, schedules=selection.schedules)
    if executor is not None:
        from egraph_opt.backends.runner import ExecutorRunner

        if not callable(getattr(executor, "submit", None)):
            raise UsageError(f"{executor!r} is no concurrent.futures.Executor")
        if options.times:
            options = replace(options, runner=ExecutorRunner(executor))
    _check_runtime(options)
    tell = progress or silent

    def single(
        model: str | Path | onnx.ModelProto,
        *,
        label: str = "",
        time_limit: float | None = time_limit,
        progress: ProgressCallback = tell,
    ) -> Result:
        run = Run(replace(options, time_limit=time_limit), progress)
        limited = time_limit is not None or memory_limit is not None
        whole = run.limits(ENDING_SHARE)
        saturator = Saturator(selection, isolated=limited, progress=run.grown, whole=whole, jobs=options.jobs)
        sessions = SessionProcess(run.limits(BUILDING_SHARE))
        compilers = ProcessExecutor(options.jobs, limits=run.limits(BUILDING_SHARE))
        run.compilers = compilers if options.jobs > 1 and memory_limit is None else None
        with tempfile.TemporaryDirectory(prefix="egraph-opt-") as folder, sessions, saturator, compilers:
            return _Optimization(model, label, run, Path(folder), saturator, sessions).result()

    if not shapes:
        return single(model)
    from egraph_opt.specialization import Specializer

    return Specializer(single, options, tell).run(model, shapes)


def _check_runtime(options: Options) -> None:
    """Raises UsageError where another runtime than onnxruntime goes with no other option, BackendMissing without it."""
    from egraph_opt.backends.runtimes import DEFAULT, asked

    if options.runtime == DEFAULT:
        return
    asked(options.runtime)
    if not options.timed or options.peak_limit is not None:
        raise UsageError("another runtime is chosen by its speed alone: leave out the cost model and the memory limit")


def _cost(cost: str | CostModel) -> tuple[str, CostModel | None]:
    """The name of a cost model, and the model where it is not the latency. Raises UsageError for an unknown name."""
    from egraph_opt.extract.cost_models import NAMED, name_of

    if not isinstance(cost, str):
        return name_of(cost), cost
    if cost in ("measured", "static"):
        return cost, None
    if cost not in NAMED:
        raise UsageError(f"unknown cost model {cost!r}; choose measured, static, {', '.join(NAMED)} or give a function")
    return cost, NAMED[cost]


def _commonest(reasons: Mapping[int, str]) -> str:
    """Why most nodes are outside the algebra, for a message."""
    return f"; most often because {Counter(reasons.values()).most_common(1)[0][0]}" if reasons else ""


@dataclass
class _Optimization:
    """``label`` names the model; ``folder`` is for files that are not needed afterwards.

    ``original`` is the model once it is read, ``accepted`` says that onnxruntime loads it.
    """

    model: str | Path | onnx.ModelProto
    label: str
    run: Run
    folder: Path
    saturator: Saturator
    sessions: SessionProcess
    original: onnx.ModelProto | None = None
    accepted: bool = False

    @property
    def name(self) -> str:
        """What messages call the model."""
        if isinstance(self.model, str | Path):
            return str(self.model)
        return self.label or (self.original or self.model).graph.name or "the model"

    def result(self) -> Result:
        """The optimized model; where a limit is reached before anything was found, the model as it is."""
        self.saturator.start()
        try:
            return self._optimized()
        except LimitReached as limit:
            if self.original is None:
                raise
            return self._unchanged(self.original, str(limit))

    def _optimized(self) -> Result:
        from egraph_opt.backends.runtimes import DEFAULT, KEY
        from egraph_opt.candidates import Builder, Prover
        from egraph_opt.contest import Contest
        from egraph_opt.explanation import Origins
        from egraph_opt.exploration import Explorer, free_prefix
        from egraph_opt.frontends.onnx_emit import unavailable
        from egraph_opt.frontends.onnx_metadata import put
        from egraph_opt.frontends.regions import Partition, partition
        from egraph_opt.kernels import attach
        from egraph_opt.measuring import Measurer, expectation
        from egraph_opt.rivals import Rivals

        run, stored = self.run, self.folder / "original" / "model.onnx"
        with run.phase("read"):
            loaded, objection = self._read(stored.parent)
            library = self._library(loaded)
            if library is not None:
                why = "it holds kernels of an earlier run, in which what lies between them was looked at as well"
                return self._unchanged(loaded.model, why, library)
            ordered = self.saturator.selection.fp == "strict"
            parts = partition(loaded, ordered=ordered) if objection is None else Partition((), {})
            regions = [region for region in parts.regions if region.worthwhile]
            judge = self._judge(stored, bool(regions) or run.options.runtime != DEFAULT, objection)
        report = self._report(loaded)
        self._tell_of_symbols(loaded, bool(parts.opaque))
        if objection is not None:
            return self._kept(loaded, report, str(objection))
        outside = f"no part of the model is inside the algebra{_commonest(parts.opaque)}"
        if not regions and run.options.runtime == DEFAULT:
            return self._kept(loaded, report, outside)
        if judge.problem:
            why = f"no inputs were found that it runs on, so nothing could be verified: {judge.problem}"
            return self._kept(loaded, report, why)
        rivals = Rivals(run, loaded, stored, judge, regions, self.folder)
        if rivals.nobody or not (regions or rivals.originals):
            return self._kept(loaded, report, f"{rivals.main} does not run it" if rivals.nobody else outside)
        compiler = None if run.options.portable or rivals.main != DEFAULT else self._compiler()
        portable = loaded.opset if compiler is None else None
        explorer = Explorer(
            regions,
            self.saturator,
            free_prefix(loaded.names),
            run,
            unavailable(loaded.opset),
            portable,
            objective=run.options.summed,
            model=loaded,
        )
        explorer.explore()
        searches = explorer.searches
        measurer = Measurer(run, compiler, loaded.opset, rivals.main)
        measurer.look(list(searches.values()))
        measurer.conclude(searches)
        limits = run.limits(BUILDING_SHARE)
        builder = Builder(
            loaded,
            regions,
            measurer.profile,
            compiler,
            self.folder,
            run.objects,
            limits,
            run.options.summed,
            rivals.main,
        )
        prover = Prover(builder, judge, regions, limits.deadline)
        explorer.vet(prover, measurer.look)
        run.notes += self.saturator.notes
        report = replace(report, saturation=explorer.saturations, packs=explorer.uses)
        contest = Contest(run, prover, stored, report.peak_memory.original, rivals.candidates(explorer))
        chosen, latency = contest.select(searches)
        report = replace(report, runtimes=rivals.latencies(contest.latencies))
        if chosen is None:
            return self._kept(loaded, report, self._nothing_found())
        report = replace(report, objective=builder.objective_of(chosen, searches))
        rules = [rule for group in self.saturator.selection.groups for rule in group.rules]
        runtime = chosen.stored.runtime
        put(chosen.model, KEY, None if runtime == DEFAULT else runtime)
        report = replace(report, runtime=runtime, portable=report.portable or runtime != DEFAULT)
        searched, costs = rivals.found.get(runtime, (searches, measurer.costs))
        if report.objective is None and chosen.plans:
            found = expectation(chosen.plans, searched, costs, bounded=run.options.peak_limit is None)
            report = replace(report, expectation=found)
        origins = Origins(loaded, regions, searched, explorer.snapshots, rules, costs)
        self._explain(chosen, origins, report.model)
        attach(chosen.model, [compiled.kernel for compiled in chosen.compiled], measurer.profile)
        return self._finished(chosen.model, run.finished(replace(report, latency=latency), chosen, ""), chosen)

    def _read(self, folder: Path) -> tuple[LoadedModel, InputRejected | None]:
        """The model, stored in a folder, and what onnx has against it although onnxruntime may load it."""
        from egraph_opt.frontends.onnx_reader import Objection, load
        from egraph_opt.frontends.onnx_storage import stored

        def keep(read: onnx.ModelProto) -> onnx.ModelProto:
            self.saturator.start(len(read.graph.node))
            self.original = stored(read, folder)
            return self.original

        self.run.progress(Progress("read"))
        try:
            return load(self.model, parsed=keep, check=self.run.limits().check), None
        except Objection as error:
            return error.loaded, error

    def _judge(self, stored: Path, needed: bool, objection: InputRejected | None) -> Judge:
        """The original's answers. Raises InputRejected where onnxruntime does not load it."""
        from egraph_opt.verification import Judge

        options = self.run.options
        if needed and not options.verify:
            self.run.notes.append("nothing was verified, as asked")
        runs, deadline = options.verify if needed else 0, self.run.deadline(BUILDING_SHARE)
        try:
            judge = Judge(stored, runs, options.seed, options.threads, self.name, deadline, sessions=self.sessions)
        except InputRejected:
            if objection is not None:
                raise objection from None
            raise
        self.accepted = True
        return judge

    def _report(self, loaded: LoadedModel) -> Report:
        """What is known before anything was done."""
        from egraph_opt.backends.environment import package_versions
        from egraph_opt.frontends.onnx_memory import peak_of

        return Report(
            model=Path(self.name).name,
            portable=self.run.options.portable,
            operators_before=dict(Counter(node.op_type for node in loaded.nodes)),
            versions=package_versions(),
            rules=self.saturator.selection.text,
            peak_memory=PeakMemory(peak_of(loaded)),
        )

    def _tell_of_symbols(self, loaded: LoadedModel, opaque: bool) -> None:
        """How more of a model with symbolic dimensions could be optimized."""
        from egraph_opt.frontends.onnx_symbols import symbols

        found = list(symbols(loaded.model))
        if found and opaque:
            self.run.notes.append(
                f"what depends on the symbolic dimensions {', '.join(found)} stays as it is; give them lengths:"
                f" --shape {found[0]}=8, or --shape {found[0]}=1,8 for one program each"
            )

    def _nothing_found(self) -> str:
        """Why nothing faster was found."""
        limits = [OUT_OF_TIME] if time.monotonic() > self.run.deadline(BUILDING_SHARE) else []
        limits += [entry.reason for entry in self.run.reverted if entry.reason in (OUT_OF_TIME, OUT_OF_MEMORY)]
        better = "faster" if self.run.options.objective is None else "better"
        return f"{limits[0]} before a {better} one was found" if limits else f"nothing {better} was found"

    def _kept(self, loaded: LoadedModel, report: Report, why: str) -> Result:
        """The original, and why."""
        return self._finished(loaded.model, self.run.finished(report, None, why))

    def _finished(self, model: onnx.ModelProto, report: Report, chosen: Candidate | None = None) -> Result:
        """The result with a model that holds its weights itself."""
        from egraph_opt.frontends.onnx_weights import bring_in

        library, compiled = (chosen.library, chosen.compiled) if chosen is not None else (None, ())
        return Result(bring_in(model), report, library, self.run.options.threads, compiled)

    def _unchanged(self, original: onnx.ModelProto, why: str, library: Path | None = None) -> Result:
        """The model as it was read, with its kernels if it has any.

        Raises where onnxruntime does not load it, or not in time.
        """
        from egraph_opt.backends.environment import package_versions
        from egraph_opt.unchanged import load_in_time, unchanged

        options = self.run.options
        if not self.accepted:
            load_in_time(original, self.name, self.sessions, options.time_limit, options.memory_limit, library)
        report = Report(
            Path(self.name).name,
            portable=options.portable,
            versions=package_versions(),
            rules=self.saturator.selection.text,
        )
        return unchanged(self.run.finished(report, None, why), original, why, options.threads, library)

    def _library(self, loaded: LoadedModel) -> Path | None:
        """The library beside a model file with kernels of ours; None for other models, and where there is none."""
        from egraph_opt.frontends.onnx_emit import KERNEL_DOMAIN
        from egraph_opt.runtime.cache import trusted_library

        if not isinstance(self.model, str | Path) or all(node.domain != KERNEL_DOMAIN for node in loaded.nodes):
            return None
        return trusted_library(Path(self.model))

    def _compiler(self) -> Path | None:
        from egraph_opt.backends.environment import kernel_target, working_compiler

        compiler, problem = working_compiler()
        if compiler is None:
            self.run.notes.append(f"{problem}; the output uses standard operators only")
        elif self.run.options.measured and self.run.options.runner is not None:
            there = self.run.runner.machine(self.run.options.threads, self.run.limits(BUILDING_SHARE)).target
            if there != kernel_target():
                self.run.notes.append(
                    f"kernels for {there}, where steps are timed, cannot be verified here: standard operators only"
                )
                return None
        return compiler

    def _explain(self, chosen: Candidate, origins: Origins, model: str) -> None:
        """Put into the model how it came about, as far as the time limit allows; without it the model is as good."""
        from egraph_opt import __version__
        from egraph_opt.explanation import attach, explain

        self.run.progress(Progress("explain"))
        with self.run.phase("explain"):
            try:
                limits = self.run.limits(EXPLAINING_SHARE)
                explanation, notes = explain(chosen, origins, model=model, version=__version__, limits=limits)
                attach(chosen.model, explanation)
                self.run.notes += notes
            except Exception as error:
                why = f"{type(error).__name__}: {one_line(str(error))}"
                self.run.notes.append(f"the model carries no explanation: {why}")
