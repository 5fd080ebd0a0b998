"""E-nodes, seconds and memory of saturating operators, models and chains of layers: `python -m bench.saturation`."""

import argparse
import datetime
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import current_commit, describe_machine
from bench.models import names
from bench.models.chains import CHAINS

if TYPE_CHECKING:
    from egraph_opt.ir.program import Program

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "saturation.jsonl"
LENGTHS = (1, 2, 5, 10, 20, 50, 100)
# The operators of the derivation list, with the options of `egraph-opt derive`.
OPERATORS: Mapping[str, tuple[str, Mapping[str, int | str | tuple[int, ...]]]] = {
    "conv": ("conv", {}),
    "conv strided": ("conv", {"stride": (2, 2), "pads": (1, 1, 1, 1)}),
    "conv dilated": ("conv", {"dilation": (2, 2)}),
    "conv 5x5": ("conv", {"kernel": (5, 5)}),
    "conv grouped": ("conv", {"groups": 2}),
    "conv 1x1": ("conv", {"kernel": (1, 1)}),
    "conv transposed": ("conv_transpose", {}),
    "matmul": ("matmul", {}),
    "matmul batched": ("matmul", {"batch": 4}),
    "matmul banded": ("band_matmul", {}),
    "max pool": ("pool", {}),
    "average pool": ("pool", {"operation": "average", "stride": (2, 2)}),
}
_ROW = "{:28} {:>7} {:>9} {:>7} {:>9} {:>9} {:>8} {:>6}  {}"
_HEADER = _ROW.format("what", "regions", "e-nodes", "rounds", "seconds", "read back", "CPU s", "MiB", "")


@dataclass(frozen=True)
class Row:
    """The saturation of one operator, model or chain: all of its regions together.

    `seconds` are those of the saturation, `read_seconds` those of reading the e-graph back, `cpu_seconds` the processor
    time of both, which other processes disturb less. `peak_mib` is the most
    memory of the process, the model and the interpreter included; `stop` is "saturated" or the first limit that was
    hit. `failure` says why there is nothing.
    """

    kind: str
    name: str
    layers: int = 1
    regions: int = 0
    enodes: int = 0
    rounds: int = 0
    seconds: float = 0.0
    read_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    stop: str = "saturated"
    failure: str | None = None
    growth: tuple[tuple[str, int, float], ...] = ()


def measure(kind: str, name: str, layers: int) -> Row:
    """Saturate one thing in this process; whatever fails becomes the row's failure."""
    from egraph_opt.derive import operator_program
    from egraph_opt.egraph.saturate import Budget
    from egraph_opt.packs import select
    from egraph_opt.saturation_worker import saturate_program

    try:
        selection = select()
        # Loads what is loaded on first use, and declares the rules: a quarter of a second once in a process.
        saturate_program(operator_program("matmul"), selection, Budget())
        enodes = rounds = 0
        seconds = read_seconds = cpu_seconds = 0.0
        stop = "saturated"
        growth: list[tuple[str, int, float]] = []
        programs = list(_programs(kind, name, layers))
        for program in programs:
            begun, cpu_begun = time.perf_counter(), time.process_time()
            found = saturate_program(program, selection, Budget())
            done = found.saturation
            read_seconds += time.perf_counter() - begun - done.seconds
            cpu_seconds += time.process_time() - cpu_begun
            seconds += done.seconds
            enodes += found.snapshot.size
            rounds += len(done.rounds)
            stop = stop if stop != "saturated" else done.stop
            growth += [(r.phase, r.enodes, round(r.seconds, 4)) for r in done.rounds] if len(programs) == 1 else []
    except Exception as error:
        return Row(kind, name, layers, failure=f"{type(error).__name__}: {error}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Row(
        kind,
        name,
        layers,
        len(programs),
        enodes,
        rounds,
        seconds,
        read_seconds,
        cpu_seconds,
        peak,
        stop,
        growth=tuple(growth),
    )


def _programs(kind: str, name: str, layers: int) -> Iterator["Program"]:
    if kind == "operator":
        from egraph_opt.derive import operator_program

        operator, options = OPERATORS[name]
        yield operator_program(operator, **options)
        return
    from bench.models import get
    from bench.models.chains import chain
    from egraph_opt.frontends.onnx_reader import load
    from egraph_opt.frontends.regions import partition

    model = get(name) if kind == "model" else chain(name, layers)
    yield from (region.program for region in partition(load(model)).regions if region.worthwhile)


def measured_apart(kind: str, name: str, layers: int) -> Row:
    """The row of one thing, measured in a process of its own: its memory is its own, and a crash costs only this."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, kind, name, layers).result()
    except Exception as error:
        return Row(kind, name, layers, failure=f"{type(error).__name__}: {error}")


def format_row(row: Row, shorter: Row | None = None) -> str:
    """The row of the table; against a `shorter` chain, how the time grew for every doubling of the layers."""
    title = f"{row.name} x {row.layers}" if row.kind == "chain" else row.name
    if row.failure is not None:
        return f"{title:28} failed: {row.failure}"
    remark = "" if row.stop == "saturated" else f"stopped: {row.stop}"
    if shorter is not None and shorter.failure is None:
        remark = f"{doubling(shorter, row):.2f} {remark}".rstrip()
    return _ROW.format(
        title,
        row.regions,
        f"{row.enodes:,}",
        row.rounds,
        f"{row.seconds:.3f}",
        f"{row.read_seconds:.3f}",
        f"{row.cpu_seconds:.3f}",
        f"{row.peak_mib:.0f}",
        remark,
    )


def doubling(shorter: Row, longer: Row) -> float:
    """By how much the processor time grows when the layers double, between two lengths of one chain."""
    from math import log2

    doublings = log2(longer.layers / shorter.layers)
    return float((longer.cpu_seconds / shorter.cpu_seconds) ** (1 / doublings))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when something failed."""
    options = _parse(arguments)
    wanted = [("operator", name, 1) for name in OPERATORS if "operators" in options.what]
    wanted += [("model", name, 1) for name in options.models if "models" in options.what]
    wanted += [("chain", kind, n) for kind in CHAINS for n in options.lengths if "chains" in options.what]
    machine = describe_machine()
    surroundings = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": current_commit(),
        "machine": machine,
    }
    print(
        f"{machine['cpu']}\nchains: the last column is the growth of the processor time when the layers double\n\n"
        f"{_HEADER}"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    before: Row | None = None
    for kind, name, layers in wanted:
        row = measured_apart(kind, name, layers)
        failures += row.failure is not None
        same = before is not None and (before.kind, before.name) == (kind, name)
        print(format_row(row, before if same else None), flush=True)
        before = row
        with options.output.open("a", encoding="utf-8") as output:
            output.write(json.dumps({**surroundings, **asdict(row)}) + "\n")
    print(f"\n{len(wanted)} saturations, {failures} failed; results appended to {options.output}")
    return 1 if failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.saturation", description=__doc__)
    kinds = ("operators", "models", "chains")
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(kinds)} (default: all)")
    parser.add_argument("--models", type=_words, default=names(), metavar="A,B", help="models (default: all)")
    parser.add_argument("--lengths", type=_numbers, default=LENGTHS, metavar="N,…", help="layers of the chains")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON lines file to append to")
    options = parser.parse_args(arguments)
    options.what = options.what or kinds
    for word in options.what:
        if word not in kinds:
            parser.error(f"{word!r} is none of {', '.join(kinds)}")
    for name in options.models:
        if name not in names():
            parser.error(f"no benchmark model is called {name!r}; the names are: {', '.join(names())}")
    return options


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
