"""Run onnx's backend test-suite through optimizers and print the table: `python -m bench.backend_suite`."""

import argparse
import datetime
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.backend_suite.cases import KINDS, collect, with_weights
from bench.backend_suite.judge import Outcome, Reference
from bench.backend_suite.optimizers import PEERS, ours
from bench.backend_suite.table import REASON_LENGTH, Row, as_json, complaints, sample, table
from bench.backend_suite.workers import Done, answers, outcomes
from bench.machine import available_cores, current_commit, describe_machine

# Seconds that one case with measuring may take.
MEASURED_CASE_SECONDS = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when this optimizer is not right somewhere."""
    options = _parse(arguments)
    cases = [case for case in collect(options.kinds) if options.only.search(case.name)]
    if options.weights:
        cases = [with_weights(case) for case in cases]
    mine = ours(force=options.force)
    with tempfile.TemporaryDirectory(prefix="egraph-opt-suite-") as folder:
        common = {"processes": options.processes, "scratch": Path(folder)}
        done = _progress("onnxruntime, unoptimized", len(cases))
        found = answers(cases, seconds=options.timeout, done=done, **common)
        reference = [(case, answer) for case, answer in zip(cases, found, strict=True) if not answer.problem]
        print(f"{len(cases)} cases, {len(reference)} run in onnxruntime with nothing optimized", flush=True)
        runs = [(mine, reference, options.timeout)]
        if options.portable:
            runs.append((ours(portable=True, force=options.force), reference, options.timeout))
        if options.measured:
            chosen = sample(reference, options.measured, options.rotation)
            runs.append((ours(cost="measured", force=options.force), chosen, MEASURED_CASE_SECONDS))
        runs += [(peer, reference, options.timeout) for peer in PEERS if not options.no_peers]
        rows = []
        for optimizer, selected, limit in runs:
            if optimizer.version is None:
                rows.append(Row(optimizer.name, "not installed", optimizer.setting))
                continue
            begun, used = time.monotonic(), _processor_seconds()
            done = _progress(optimizer.name, len(selected))
            judged = outcomes(optimizer, selected, seconds=limit, done=done, **common)
            results = {case.name: outcome for (case, _), outcome in zip(selected, judged, strict=True)}
            seconds, used = time.monotonic() - begun, _processor_seconds() - used
            rows.append(Row(optimizer.name, optimizer.version, optimizer.setting, results, seconds, used))
    print(f"\n{table(rows)}\n\n{complaints(rows)}")
    if options.json is not None:
        surroundings = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": current_commit(),
            "machine": describe_machine(),
            "cases": len(cases),
            "reference": len(reference),
            "weights": options.weights,
            "processes": options.processes,
            "not_run": {case.name: answer.problem for case, answer in zip(cases, found, strict=True) if answer.problem},
        }
        options.json.write_text(json.dumps(surroundings | as_json(rows), indent=1) + "\n", encoding="utf-8")
    return int(any(row.name.startswith("egraph-opt") and row.wrong() for row in rows))


def _processor_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _progress(name: str, total: int) -> Done:
    def done(count: int, case: str, found: Outcome | Reference) -> None:
        if isinstance(found, Outcome) and not found.right:
            print(f"{name}: {case}: {found.kind}: {found.reason[:REASON_LENGTH]}", file=sys.stderr, flush=True)
        if count % 100 == 0 or count == total:
            print(f"{name}: {count} of {total}", file=sys.stderr, flush=True)

    return done


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.backend_suite", description=__doc__)
    parser.add_argument(
        "--portable", action="store_true", help="a further row: egraph-opt with standard operators only"
    )
    parser.add_argument("--no-peers", action="store_true", help="egraph-opt only")
    parser.add_argument("--force", action="store_true", help="egraph-opt replaces every region, worthwhile or not")
    parser.add_argument("--weights", action="store_true", help="all inputs of every case but the first become weights")
    parser.add_argument("--measured", type=int, default=0, metavar="N", help="a further row: N cases with profiling")
    today = datetime.date.today().toordinal()
    parser.add_argument("--rotation", type=int, default=today, metavar="K", help="which N cases (default: by the day)")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="cases by name")
    parser.add_argument("--kinds", type=_kinds, default=KINDS, metavar="A,B", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds for one case (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=min(2, available_cores()), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser.parse_args(arguments)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if not set(kinds) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"known kinds: {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main())
