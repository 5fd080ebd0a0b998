"""What several jobs save in a search without measurements: `python -m bench.jobs`."""

import argparse
import datetime
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.machine import current_commit, describe_machine
from bench.models import names

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "jobs.jsonl"
# What belongs to the search: what is read before and verified and explained afterwards does not.
SEARCH = ("saturate", "extract", "profile")
_ROW = "{:20} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8}"
_HEADER = _ROW.format("model", "jobs", "saturate", "extract", "choose", "search s", "total s", "CPU s", "gain")


@dataclass(frozen=True)
class Row:
    """One optimization by static cost. `seconds` are those of its phases, `total` those of all of it.

    `own_cpu` is the processor time of the process itself, `cpu` that of all its processes: where others use the
    machine, own_cpu + (cpu - own_cpu) / jobs is what the search would take at least. `digest` identifies the model.
    """

    model: str
    jobs: int
    seconds: dict[str, float]
    total: float
    own_cpu: float
    cpu: float
    digest: str

    @property
    def search(self) -> float:
        """Seconds of saturating, reading e-graphs, choosing and compiling."""
        return sum(self.seconds.get(phase, 0.0) for phase in SEARCH)

    @property
    def bound(self) -> float:
        """Seconds on a machine that does nothing else, with jobs of equal length."""
        return self.own_cpu + (self.cpu - self.own_cpu) / self.jobs


def measure(model: str, jobs: int) -> Row:
    """One optimization in this process, which should be a fresh one."""
    from hashlib import sha256

    from bench.models import get
    from egraph_opt.pipeline import optimize

    loaded = get(model)
    begun, own, others = time.monotonic(), time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = optimize(loaded, cost="static", jobs=jobs)
    total, own = time.monotonic() - begun, time.process_time() - own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own + after.ru_utime - others.ru_utime + after.ru_stime - others.ru_stime
    digest = sha256(result.model.SerializeToString(deterministic=True) + (result.library or b"")).hexdigest()
    return Row(model, jobs, result.report.seconds, total, own, cpu, digest)


def format_row(row: Row, one: Row) -> str:
    """The row of the table, against that of the first number of jobs."""
    phases = [f"{row.seconds.get(phase, 0.0):.2f}" for phase in SEARCH]
    times = f"{row.search:.2f}", f"{row.total:.2f}", f"{row.cpu:.2f}"
    return _ROW.format(row.model, row.jobs, *phases, *times, f"{one.search / row.search:.2f}x")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when the number of jobs changed a result."""
    parser = argparse.ArgumentParser(prog="python -m bench.jobs", description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["gcn"], metavar="A,B", help="models")
    parser.add_argument("--jobs", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2], metavar="N,…")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON lines file to append to")
    options = parser.parse_args(arguments)
    for name in options.models:
        if name not in names():
            parser.error(f"no benchmark model is called {name!r}; the names are: {', '.join(names())}")
    machine = describe_machine()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    surroundings = {"date": date, "commit": current_commit(), "machine": machine}
    print(f"{machine['cpu']}\n\n{_HEADER}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    different = 0
    for name in options.models:
        rows: list[Row] = []
        for jobs in options.jobs:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, name, jobs).result()
            rows.append(row)
            print(format_row(row, rows[0]), flush=True)
            with options.output.open("a", encoding="utf-8") as output:
                output.write(json.dumps({**surroundings, **asdict(row)}) + "\n")
        different += len({row.digest for row in rows}) > 1
        if rows[0].bound:
            print(f"{'':20} by processor time alone: {rows[0].bound / rows[-1].bound:.2f}x of the whole")
    print("results do not depend on the jobs" if not different else f"{different} results depend on the jobs")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
