"""Choices by static cost – trees, quick, exact – and how long they take: `python -m bench.extraction`."""

import argparse
import datetime
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import current_commit, describe_machine
from bench.models import names

if TYPE_CHECKING:
    from egraph_opt.extract.graph import Graph, Option

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "extraction.jsonl"
# Ways of the generated graphs.
SIZES = (1_000, 5_000, 20_000)
# Chains of layers with e-graphs of about 20,000 e-nodes.
LONG_CHAINS = ("conv:60", "residual:30", "attention:32", "siblings:80")
_ROW = "{:20} {:>8} {:>7} {:>7} {:>11} {:>11} {:>8} {:>11} {:>11} {:>7} {:>8}"
_HEADER = _ROW.format(
    "what", "e-nodes", "ways", "read s", "trees", "quick", "seconds", "best", "bound", "gap", "seconds"
)


@dataclass(frozen=True)
class Row:
    """Choices on one region of a model, or on a generated graph.

    Costs are microseconds by the static cost model; the `gap` is that of the best choice to the bound. It takes
    `read_seconds` to find what there is to choose from. All seconds are processor time.
    """

    name: str
    enodes: int
    buffers: int
    ways: int
    trees: float
    quick: float
    quick_seconds: float
    best: float
    bound: float
    gap: float
    seconds: float
    nodes: int
    pivots: int
    read_seconds: float = 0.0


def measure(name: str, enodes: int, graph: "Graph", seconds: float, read_seconds: float = 0.0) -> Row:
    """The row of one graph; exact choices get this many seconds."""
    from egraph_opt.extract.choose import QUICK_WORK
    from egraph_opt.extract.exact import solve
    from egraph_opt.extract.graph import trees
    from egraph_opt.extract.improve import heuristic
    from egraph_opt.extract.landmarks import landmarks

    pick = trees(graph, graph.cost)[1]
    begun = time.process_time()
    quick = heuristic(graph, landmarks(graph, work=QUICK_WORK))
    quick_seconds = time.process_time() - begun
    found = solve(graph, seconds=seconds)
    unit = graph.unit * 1e6
    return Row(
        name,
        enodes,
        graph.nodes,
        len(graph.owner),
        graph.total(pick, graph.used(pick) or ()) * unit,
        quick.cost * unit,
        quick_seconds,
        found.pick.cost * unit,
        found.bound * unit,
        found.gap,
        found.seconds,
        found.nodes,
        found.pivots,
        read_seconds,
    )


def graphs_of(name: str) -> Iterator[tuple[str, int, "Graph", float]]:
    """Title, e-nodes and graph of every region of a model that is worth searching, and the seconds of reading it.

    Names such as `residual:30` are so many layers of a chain.
    """
    from bench.models import get
    from bench.models.chains import chain
    from egraph_opt.egraph.saturate import Budget
    from egraph_opt.extract.alternatives import Extraction
    from egraph_opt.extract.graph import Option, graph_of
    from egraph_opt.extract.roofline import STEP_SECONDS, Device
    from egraph_opt.frontends.onnx_reader import load
    from egraph_opt.frontends.regions import partition
    from egraph_opt.ir.terms import Reshape
    from egraph_opt.packs import select
    from egraph_opt.saturation_worker import saturate_program

    selection = select()
    kind, _, count = name.partition(":")
    model = chain(kind, int(count)) if count else get(name)
    regions = [region for region in partition(load(model)).regions if region.worthwhile]
    for region in regions:
        snapshot = saturate_program(region.program, selection, Budget()).snapshot
        begun = time.process_time()
        problem = Extraction(snapshot, Device()).problem(region.program.outputs)
        options = {
            owner: [
                Option(a.estimate + (0.0 if isinstance(a.step, Reshape) else STEP_SECONDS), a.needs, a.text)
                for a in found
            ]
            for owner, found in problem.alternatives.items()
        }
        graph = graph_of(options, sorted(problem.roots.values()))
        if graph is not None:
            title = name if len(regions) == 1 else f"{name} {region.index}"
            yield title, snapshot.size, graph, time.process_time() - begun


def generated(ways: int) -> "Graph":
    """A graph like that of a model, with about this many ways before the useless ones are dropped."""
    from egraph_opt.extract.graph import graph_of

    width = 8
    graph = graph_of(*layers(max(1, ways // (12 * width)), width, 0, 1e-6))
    assert graph is not None
    return graph


def layers(depth: int, width: int, seed: int, unit: float = 1.0) -> tuple[dict[int, list["Option"]], list[int]]:
    """Options and outputs of a graph like that of a model, its costs in `unit`s.

    Each layer has operators in two layouts, a joint form of all of them, and readers that are fused or not.
    """
    from egraph_opt.extract.graph import Option

    draw = random.Random(seed)
    options: dict[int, list[Option]] = {}
    before = [-1] * width
    count = 0

    def add(ways: list[tuple[float, tuple[int, ...]]]) -> int:
        nonlocal count
        options[count] = [Option(cost * unit, needs, f"{count}.{i}") for i, (cost, needs) in enumerate(ways)]
        count += 1
        return count - 1

    for _ in range(depth):
        joint = add([(draw.uniform(3, 6) * width, tuple(dict.fromkeys(before)))])
        outputs = []
        for position in range(width):
            needs = tuple({before[position], before[draw.randrange(width)]})
            plain = add([(draw.uniform(5, 12), needs), (draw.uniform(0.5, 2), (joint,))])
            turned = add([(draw.uniform(5, 12), needs), (1.5, (plain,))])
            options[plain].append(Option(1.5 * unit, (turned,), f"{plain} turned"))
            reader = [(draw.uniform(1, 3), (plain,)), (draw.uniform(0.5, 2), (turned,)), (draw.uniform(2, 4), (joint,))]
            reader += [(draw.uniform(6, 14), needs)]
            reader += [(draw.uniform(2, 5), (turned, other)) for other in outputs[-2:]]
            outputs.append(add(reader))
        before = outputs
    return options, before


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.extraction", description=__doc__)
    split = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    default = [*names(), *LONG_CHAINS]
    parser.add_argument(
        "--models", type=split, default=default, metavar="A,B", help="models, KIND:LAYERS for chains (default: all)"
    )
    parser.add_argument("--sizes", type=split, default=SIZES, metavar="N,…", help="ways of generated graphs")
    parser.add_argument("--seconds", type=float, default=5.0, help="limit of an exact choice (default %(default)s)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON lines file to append to")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    surroundings = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": current_commit(),
        "machine": machine,
    }
    print(f"{machine['cpu']}; microseconds by the static cost model\n\n{_HEADER}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for title, enodes, graph, read in _wanted(options.models, [int(size) for size in options.sizes]):
        row = measure(title, enodes, graph, options.seconds, read)
        print(format_row(row), flush=True)
        with options.output.open("a", encoding="utf-8") as output:
            output.write(json.dumps({**surroundings, **asdict(row)}) + "\n")
    return 0


def _wanted(models: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[str, int, "Graph", float]]:
    for name in models:
        yield from graphs_of(name)
    for size in sizes:
        yield f"generated {size}", 0, generated(size), 0.0


def format_row(row: Row) -> str:
    """The row of the table."""
    costs = [f"{cost:,.2f}" for cost in (row.trees, row.quick)], [f"{cost:,.2f}" for cost in (row.best, row.bound)]
    times = f"{row.quick_seconds:.2f}", f"{row.seconds:.2f}"
    what = row.name, row.enodes, row.ways, f"{row.read_seconds:.2f}"
    return _ROW.format(*what, *costs[0], times[0], *costs[1], f"{row.gap:.2%}", times[1])


if __name__ == "__main__":
    raise SystemExit(main())
