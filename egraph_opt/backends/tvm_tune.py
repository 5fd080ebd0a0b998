"""Tuning by MetaSchedule as question and answer: it proposes schedules of a kernel, whoever asks times them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from inspect import signature
from math import isfinite
from typing import Any

import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.logging import get_logging_func

from egraph_opt.backends import tvm_blocks, tvm_spaces, tvm_trace
from egraph_opt.backends.tvm_build import Kernel, host_target
from egraph_opt.errors import EgraphOptError, InputRejected, one_line
from egraph_opt.ir.schedules import KernelSchedule, TuningModel

SEED = 1
# Proposals between two answers, and the schedules that each batch of them is picked from.
BATCH, POPULATION = 8, 64


class Tuner:
    """Proposes traces for one kernel, at most ``trials``: the same ones after the same answers.

    ``spaces`` and ``model`` are a user's own. Raises EgraphOptError where the kernel has no blocks, or what the user
    gave fails.
    """

    def __init__(
        self,
        kernel: Kernel,
        trials: int,
        *,
        threads: int,
        spaces: Sequence[KernelSchedule] = (),
        model: TuningModel | None = None,
    ) -> None:
        self._module = tvm_blocks.blocks_module(kernel.body, kernel.inputs)
        self._target = tvm.target.Target({**host_target(), "num-cores": threads})
        self._model = _model(model)
        generators = [_generator(space) for space in spaces] or list(tvm_spaces.generators_for(kernel.body))
        count = len(generators)
        shares = [trials // count + (i < trials % count) for i in range(count)]
        self._waiting = [(g, share) for g, share in zip(generators, shares, strict=True) if share]
        self._context: Any = None
        self._asked: list[Any] = []
        self._answers: list[int] = []
        self._known: dict[str, int] = {}

    def ask(self) -> list[str]:
        """The next traces to be timed; none when all trials are used up or nothing new is found."""
        while True:
            if self._context is None:
                if not self._waiting:
                    return []
                self._begin(*self._waiting.pop(0))
            found = self._context.search_strategy.generate_measure_candidates()
            if not found:
                self._context.search_strategy.post_tuning()
                self._context = None
                continue
            self._asked = list(found)
            traces = [self._trace(candidate) for candidate in self._asked]
            fresh = list(dict.fromkeys(trace for trace in traces if trace))
            self._answers = [fresh.index(trace) if trace else -1 for trace in traces]
            if fresh:
                return fresh
            self.tell([])

    def tell(self, seconds: Sequence[float]) -> None:
        """How long each of the traces took that were asked for last; infinity for a failure."""
        results = []
        for candidate, answer in zip(self._asked, self._answers, strict=True):
            took = seconds[answer] if answer >= 0 else float("inf")
            failed = not isfinite(took)
            results.append(ms.runner.RunnerResult(None if failed else [took], "failed" if failed else None))
            self._records.commit_tuning_record(
                ms.database.TuningRecord(
                    candidate.sch.trace,
                    self._workload,
                    [1e10 if failed else took],
                    self._target,
                    candidate.args_info,
                )
            )
        self._context.search_strategy.notify_runner_results(self._asked, results)
        self._model.update(self._context, self._asked, results)

    def _begin(self, generator: Any, trials: int) -> None:
        search = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION, init_measured_ratio=0.2, init_min_unmeasured=BATCH, genetic_num_iters=2
        )
        try:
            self._context = _context(self._module, self._target, generator, search)
            space = self._context.generate_design_space()
        except Exception as error:
            raise EgraphOptError(one_line(f"the space of schedules fails: {type(error).__name__}: {error}")) from error
        self._records = ms.database.MemoryDatabase()
        self._workload = self._records.commit_workload(self._module)
        self._context.search_strategy.pre_tuning(trials, min(BATCH, trials), space, self._records, self._model)

    @staticmethod
    def _trace(candidate: Any) -> str:
        """The trace of a proposal, empty where it holds what may not be stored."""
        try:
            return tvm_trace.text_of(candidate.sch)
        except InputRejected:
            return ""


def _context(module: Any, target: Any, generator: Any, search: Any) -> Any:
    """What MetaSchedule keeps of one kernel. Its own constructor reads all of TVM's tensor intrinsics first: 20 s."""
    context = ms.TuneContext.__new__(ms.TuneContext)
    logger = get_logging_func(logging.getLogger(__name__))
    context.__init_handle_by_constructor__(
        ms._ffi_api.TuneContext, module, target, generator, search, "kernel", 1, SEED, logger
    )
    ms._ffi_api.TuneContextInitialize(context)
    return context.clone()


def trace_by(schedule: KernelSchedule, kernel: Kernel) -> str:
    """What a user's schedule makes of a kernel, as a trace.

    Raises EgraphOptError, naming the schedule, where it raises or does what cannot be stored and replayed.
    """
    from tvm import s_tir

    module = tvm_blocks.blocks_module(kernel.body, kernel.inputs)
    arrangement = s_tir.Schedule(module, seed=SEED, error_render_level="fast")
    try:
        found = schedule.arrange(arrangement)
        arrangement = arrangement if found is None else found
        if not isinstance(arrangement, s_tir.Schedule):
            raise EgraphOptError(f"it returned a {type(arrangement).__name__}, not the schedule")
        return tvm_trace.text_of(arrangement)
    except EgraphOptError as error:
        raise EgraphOptError(f"the schedule {schedule.name} is not used: {error}") from error
    except Exception as error:
        raise EgraphOptError(
            one_line(f"the schedule {schedule.name} is not used: it raised {type(error).__name__}: {error}")
        ) from error


def _generator(space: KernelSchedule) -> Any:
    if signature(space.arrange).parameters:
        return tvm_spaces.own(space.arrange)
    made = space.arrange()
    if not isinstance(made, ms.space_generator.SpaceGenerator):
        raise EgraphOptError(f"the space {space.name} returned a {type(made).__name__}, not a SpaceGenerator")
    return made


def _model(model: TuningModel | None) -> Any:
    if model is None:
        # TVM's trained one needs a package that may be there or not; what is proposed must not depend on that.
        return ms.cost_model.RandomModel(seed=SEED)
    try:
        made = model.make()
    except Exception as error:
        raise EgraphOptError(one_line(f"the cost model {model.name} raised {type(error).__name__}: {error}")) from error
    if not isinstance(made, ms.cost_model.CostModel):
        raise EgraphOptError(f"the cost model {model.name} is a {type(made).__name__}, not a MetaSchedule CostModel")
    return made
