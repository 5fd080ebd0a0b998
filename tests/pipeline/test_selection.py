"""Which candidate wins, with made-up latencies: the timer is replaced by a table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from egraph_opt import contest
from egraph_opt.backends.runner import LocalRunner
from egraph_opt.errors import InputRejected
from egraph_opt.extract import costs, profiler
from egraph_opt.extract.profile import Measurement, Profile
from egraph_opt.pipeline import optimize
from egraph_opt.runtime.timing import Comparison
from tests.pipeline.support import build, chain_of_regions, node, normal, wrong

Clock = Callable[[onnx.GraphProto], float]


def replaced(graph: onnx.GraphProto) -> set[int]:
    """The regions of chain_of_regions that no longer have their MatMul."""
    kept = {name for n in graph.node if n.op_type == "MatMul" for name in n.input}
    return {i for i in range(4) if f"w{i}" not in kept} & {
        i for i in range(4) if any(f"s{i}" in n.output for n in graph.node)
    }


@pytest.fixture
def timer(monkeypatch) -> Any:
    """Measures every step as fast; ``timer.clock`` tells the milliseconds of a whole model."""

    class Timer:
        clock: Clock
        asked: list[list[onnx.GraphProto]]

    state = Timer()
    state.asked = []

    def time_models(runner: Any, models: Sequence[Any], *, rounds: int, **options: Any) -> list[list[float]]:
        graphs = [onnx.load(timed.model).graph for timed in models]
        state.asked.append(graphs)
        return [[state.clock(graph)] * rounds for graph in graphs]

    def measure(self: Any, steps: Any, progress: Any) -> None:
        for signature, _ in steps:
            implementation = profiler.KERNEL if signature.startswith("kernel(") else profiler.LIBRARY
            if not self.profile.knows(signature, implementation):
                self.profile.add([Measurement(signature, implementation, (1.0,))])

    monkeypatch.setattr(LocalRunner, "time_models", time_models)
    monkeypatch.setattr(profiler.Profiler, "measure", measure)
    return state


FEEDS = {"x": normal(3, 4)}


def run(model: onnx.ModelProto, database: Path) -> Any:
    return optimize(model, threads=1, profile_db=database)


def test_the_whole_wins_when_it_is_faster(timer, tmp_path: Path) -> None:
    timer.clock = lambda graph: 4.0 - len(replaced(graph))
    model = chain_of_regions(3)
    result = run(model, tmp_path / "p")
    assert result.report.latency.speedup.median == 4.0
    assert replaced(result.model.graph) == {0, 1, 2}
    assert len(timer.asked) == 1
    assert not wrong(model, result, FEEDS)


def test_regions_are_tried_alone_when_the_whole_is_not_faster(timer, tmp_path: Path) -> None:
    gain = {0: -1.0, 1: 3.0, 2: -4.0, 3: 2.0}
    timer.clock = lambda graph: 10.0 - sum(gain[i] for i in replaced(graph))
    model = chain_of_regions(4)
    result = run(model, tmp_path / "p")
    assert replaced(result.model.graph) == {1, 3}
    assert result.report.latency.optimized.median == 5.0
    assert [len(graphs) for graphs in timer.asked] == [2, 5, 2]  # whole; each alone; the two good ones
    assert not wrong(model, result, FEEDS)


@pytest.mark.parametrize("milliseconds", [9.9, 10.0, 12.0])
def test_what_is_hardly_faster_is_not_worth_it(timer, tmp_path: Path, milliseconds: float) -> None:
    timer.clock = lambda graph: milliseconds if replaced(graph) else 10.0
    model = chain_of_regions(2)
    result = run(model, tmp_path / "p")
    assert result.report.unchanged_because == "nothing faster was found"
    ratio = f"{10 / milliseconds:.2f}x"
    assert result.report.notes == (f"the best candidate reached {ratio} (lower quartile {ratio})",)
    assert result.model == model


def test_a_median_that_noise_could_have_made_is_not_worth_it() -> None:
    steady = Comparison.of([10.0] * 8, [9.0] * 8)
    noisy = Comparison.of([10.0] * 8, [8.0] * 5 + [11.0] * 3)
    assert noisy.ratio.median > steady.ratio.median
    assert contest.is_faster(steady)
    assert not contest.is_faster(noisy)


def test_the_second_run_gets_its_latencies_from_the_database(timer, tmp_path: Path) -> None:
    timer.clock = lambda graph: 4.0 - len(replaced(graph))
    first = run(chain_of_regions(2), tmp_path / "p")
    timer.clock = lambda graph: 4.0
    second = run(chain_of_regions(2), tmp_path / "p")
    assert second.model == first.model
    assert second.report.latency == first.report.latency
    assert "the latencies are in the profile database since an earlier run" in second.report.notes


def test_a_candidate_that_cannot_be_timed_is_dropped(timer, tmp_path: Path, monkeypatch) -> None:
    timer.clock = lambda graph: 4.0 - len(replaced(graph))
    working = LocalRunner.time_models

    def time_models(runner: Any, models: Any, **options: Any) -> Any:
        if any(len(replaced(onnx.load(timed.model).graph)) > 1 for timed in models):
            raise InputRejected("the process died")
        return working(runner, models, **options)

    monkeypatch.setattr(LocalRunner, "time_models", time_models)
    result = run(chain_of_regions(2), tmp_path / "p")
    assert "a candidate was dropped: the process died" in result.report.notes
    assert result.report.latency.speedup.median == pytest.approx(4 / 3)


def convolutions() -> onnx.ModelProto:
    """Two Convs in a row."""
    weights = {"v": normal(4, 4, 3, 3) / 6, "w": normal(4, 4, 3, 3, seed=1) / 6}
    nodes = [node("Conv", "x v", "a", pads=[1] * 4), node("Relu", "a", "b"), node("Conv", "b w", "y", pads=[1] * 4)]
    return build(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]}, weights)


def test_chains_of_convolutions_are_a_second_candidate(timer, tmp_path: Path, monkeypatch) -> None:
    """Measured alone every kernel is a little faster than the Conv; in the whole model the Convs win."""

    def measure(self: Any, steps: Any, progress: Any) -> None:
        for signature, _ in steps:
            kernel = signature.startswith("kernel(")
            milliseconds = 1.1 if signature.startswith("Conv[") else 1.0 if kernel else 5.0
            implementation = profiler.KERNEL if kernel else profiler.LIBRARY
            self.profile.add([Measurement(signature, implementation, (milliseconds,))])

    def convs(graph: onnx.GraphProto) -> int:
        return sum(n.op_type == "Conv" for n in graph.node)

    monkeypatch.setattr(profiler.Profiler, "measure", measure)
    model = convolutions()
    timer.clock = lambda graph: 8.0 - 2 * convs(graph) if graph.node[0].name else 10.0  # our nodes have names
    result = run(model, tmp_path / "p")
    (graphs,) = timer.asked
    assert len(graphs) == 3  # the original and two candidates
    assert convs(graphs[1]) < convs(graphs[2]) == 2
    assert convs(result.model.graph) == 2
    assert not wrong(model, result, {"x": normal(1, 4, 8, 8)})


def test_what_could_not_be_measured_in_time_is_timed_as_a_whole(timer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(profiler.Profiler, "measure", lambda *arguments: None)
    timer.clock = lambda graph: 4.0 - len(replaced(graph))
    result = run(chain_of_regions(2), tmp_path / "p")
    assert result.report.changed
    assert not result.report.reverted


def test_costs_of_convolutions_in_chains() -> None:
    from egraph_opt.extract.alternatives import Alternative
    from egraph_opt.ir.terms import Call, Source

    profile = Profile(None, "device")
    steps = [Call(name, "", (Source("a", (1, 2)), Source("b", (2, 3))), (1, 3)) for name in ("Conv", "MatMul")]
    conv, product = (Alternative(step, (), 1.0) for step in steps)
    charged = costs.Costs(profile, lambda _: True, conv=costs.CHAINED_CONV)
    step = costs.STEP_SECONDS
    assert (charged(conv), charged(product)) == pytest.approx((costs.CHAINED_CONV + step, 1.0 + step), rel=1e-9)
    profile.add([Measurement(conv.text, "library", (500.0,)), Measurement(product.text, "library", (500.0,))])
    assert (charged(conv), charged(product)) == pytest.approx((costs.CHAINED_CONV / 2 + step, 0.5 + step), rel=1e-9)
    assert costs.Costs(profile, lambda _: False)(conv) == float("inf")


def test_without_memory_for_timing_the_original_is_kept(timer, tmp_path: Path, monkeypatch) -> None:
    timer.clock = lambda graph: 4.0 - len(replaced(graph))
    monkeypatch.setattr("egraph_opt.contest.memory_suffices", lambda: False)
    result = run(chain_of_regions(2), tmp_path / "p")
    assert result.report.unchanged_because == "nothing faster was found"
    assert "too little memory is free to time the candidates beside the original" in result.report.notes
