"""The benchmark models on a GPU, and what others make of them: ``python -m bench.gpu FOLDER``, or ``bench/gpu.sh``.

Two steps, each done where it can be and left out where its results exist already. Plan (anywhere; the CUDA toolkit, no
GPU) writes a bundle of every model: all kernels and library calls to be measured, and plans to choose from. Measure
(the GPU machine; numpy, torch, onnx, and jax if XLA is to take part) profiles the bundles, runs the best program of
each, with generated kernels and by library calls alone, and the peers: torch operator by operator, the same as one CUDA
graph, torch.compile at max-autotune, jax. Every output is held against float64. What is there when the time is up is
kept, and the same command goes on from there. On two machines, carry the folder to and fro.

The weights are drawn from their seeds on both machines, so a folder of all models takes a few megabytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.gpu_worker import ARCHITECTURE, Task, Worker, database, inputs_of, lookup_steps, original, sampled
from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.extract.profile import Profile, devices
from egraph_opt.gpu.devices import device_of
from egraph_opt.gpu.files import MODE, write_arrays

PRECISIONS = ("float32", "TF32", "float16")
# What is done for every model before what comes next, with the seconds that one model may take; half precision is the
# peers' alone.
PASSES = (
    ("float32", (("profile", 90.0), ("ours", 60.0), ("library", 60.0), ("eager", 40.0), ("graph", 40.0))),
    ("float32", (("xla", 90.0),)),
    ("float32", (("compile", 150.0),)),
    ("TF32", (("profile", 90.0), ("ours", 60.0), ("library", 60.0), ("graph", 40.0))),
    ("float16", (("graph", 40.0),)),
    ("TF32", (("xla", 90.0), ("compile", 150.0))),
    ("float16", (("xla", 90.0), ("compile", 150.0))),
)
# How far an answer may be from float64, as a share of its largest magnitude.
TOLERANCE = {"float32": 1e-4, "TF32": 2e-2, "float16": 5e-2}
# Models whose original takes more memory than this, in GiB, are not run by onnxruntime here.
LARGEST = 8.0


def main() -> None:
    """Do all steps that can be done on this machine."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, help="where bundles, databases and results lie")
    parser.add_argument("models", nargs="*", help="benchmark models (default: all)")
    parser.add_argument("--device", choices=("cuda", "host"), default="cuda", help="host: the processor, for a trial")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for measuring (default 9)")
    parser.add_argument("--ways", default="", metavar="WAY,…", help="only these ways, such as ours,eager")
    parser.add_argument("--precisions", default="", metavar="P,…", help="only these precisions, such as float32")
    parser.add_argument("--plan-only", type=Path, metavar="FILE.json", help="plan and write a table of what is planned")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    names = options.models or _catalogue()
    if importlib.util.find_spec("egglog") is not None and shutil.which("nvcc"):
        plans = plan(options.folder, names)
        if options.plan_only is not None:
            options.plan_only.write_text(json.dumps(plans, indent=1) + "\n")
    if options.plan_only is not None:
        return
    try:
        device_of(options.device, ARCHITECTURE)
    except (BackendMissing, EgraphOptError) as missing:
        print(f"no measuring here: {missing}")
        return
    planned = [name for name in names if (options.folder / f"{name}.bundle").exists()]
    ways, precisions = (set(filter(None, text.split(","))) for text in (options.ways, options.precisions))
    tasks = [
        (task, seconds)
        for task, seconds in _tasks(planned, options.device, options.folder)
        if (not ways or task.way in ways) and (not precisions or task.precision in precisions)
    ]
    before = clocks()
    rows = measure(tasks, options.folder, options.minutes * 60)
    machine = {"date": time.strftime("%Y-%m-%d"), "before": before, "after": clocks()}
    (options.folder / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
    print(shown(rows))
    ship(options.folder, rows)


def clocks() -> dict[str, str]:
    """The GPU, its driver and its clocks, as nvidia-smi has them; nothing where that is not there."""
    names = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw")
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return dict(zip(names, (part.strip() for part in found[0].split(",")), strict=False)) if found else {}


def _catalogue() -> list[str]:
    from bench.models import catalogue

    return list(catalogue.names())


# ---- planning -------------------------------------------------------------------------------------------------------


def plan(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Bundles of the models, and some of onnxruntime's answers; what was planned, one record for each model."""
    from bench.models import catalogue
    from egraph_opt import offline
    from egraph_opt.gpu.files import Bundle

    file = folder / "plans.json"
    known = {row["model"]: row for row in (json.loads(file.read_text()) if file.exists() else [])}
    for name in names:
        path = folder / f"{name}.bundle"
        if name in known and path.exists():
            continue
        begun = time.monotonic()
        try:
            bundle: Bundle = offline.plan(catalogue.get(name))
        except EgraphOptError as error:
            print(f"{name}: no bundle: {error}")
            continue
        seconds = time.monotonic() - begun
        bundle.write(path)
        resources = {key: found for module in bundle.modules for key, found in module.resources.items()}
        kernels = [resources[work.kernel] for work in bundle.works if work.is_kernel]
        known[name] = {
            "model": name,
            "calls": len(bundle.works) - len(kernels),
            "kernels": len(kernels),
            "registers": max((found.registers for found in kernels), default=0),
            "shared": max((found.shared for found in kernels), default=0),
            "spilled": sum(why.startswith("it spills") for why in bundle.dropped.values()),
            "left_out": len(bundle.dropped),
            "cubin_bytes": sum(len(module.cubin) for module in bundle.modules),
            "bundle_bytes": path.stat().st_size,
            "seconds": round(seconds, 1),
        }
        file.write_text(json.dumps([known[n] for n in _catalogue() if n in known], indent=1) + "\n")
        if catalogue.find(name)[0].memory <= LARGEST:
            write_arrays(folder / f"{name}.npz", dict(_answers(name)))
        print(", ".join(f"{key} {value}" for key, value in known[name].items()), flush=True)
    return [known[name] for name in names if name in known]


def _answers(name: str) -> Iterator[tuple[str, Any]]:
    """Some elements of every output by onnxruntime."""
    from bench.models import catalogue
    from egraph_opt.backends.onnxruntime import make_session

    session = make_session(catalogue.get(name).SerializeToString())
    values = session.run(None, inputs_of(original(name)))
    yield from ((value.name, sampled(found)) for value, found in zip(original(name).outputs, values, strict=True))


# ---- measuring ------------------------------------------------------------------------------------------------------


def _tasks(names: Sequence[str], device: str, folder: Path) -> Iterator[tuple[Task, float]]:
    for precision, ways in PASSES:
        for name in names:
            for way, seconds in ways:
                yield Task(name, way, precision, device, folder), seconds


def measure(tasks: Sequence[tuple[Task, float]], folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Do what was not done yet, as far as the time goes; all results there are."""
    file = folder / "results.json"
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in json.loads(file.read_text()) if file.exists() else []:
        rows[row["device"], row["model"], row["way"], row["precision"]] = row
    deadline = time.monotonic() + seconds
    worker = Worker()
    left = 0
    for task, limit in tasks:
        key = (task.device, task.model, task.way, task.precision)
        if key in rows and "problem" not in rows[key]:
            continue
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            left += 1
            continue
        found = worker.ask(task, min(limit, remaining))
        rows[key] = {**dict(zip(("device", "model", "way", "precision"), key, strict=True)), **found}
        file.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
        told = found.get("problem") or found.get("milliseconds") or f"{len(found.get('failures', ()))} failures"
        print(f"{task.model} {task.way} {task.precision}: {told}", file=sys.stderr, flush=True)
    worker.close()
    if left:
        print(f"the time is up; {left} measurements are left for the next run of this command")
    wanted = {(task.device, task.model, task.way, task.precision) for task, _ in tasks}
    return [row for key, row in rows.items() if key in wanted]


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table: milliseconds of every way, a model and precision in each line; ``!`` marks wrong answers."""
    from egraph_opt.cli.arguments import table

    ways = [
        way for way in ("ours", "library", "eager", "graph", "xla", "compile") if any(r["way"] == way for r in rows)
    ]
    lines = [("model", "precision", *ways, "kernels", "best peer / ours", "error")]
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["way"] in ways:
            cells.setdefault((row["precision"], row["model"]), {})[row["way"]] = row
    for (precision, model), found in sorted(cells.items(), key=lambda item: PRECISIONS.index(item[0][0])):
        peers = [
            found[way]["milliseconds"][1]
            for way in ("eager", "graph", "xla", "compile")
            if way in found and _right(found[way], precision)
        ]
        ours = found.get("ours", {})
        ratio = f"{min(peers) / ours['milliseconds'][1]:.2f}" if peers and _right(ours, precision) else "-"
        times = [_cell(found.get(way), precision) for way in ways]
        error = f"{ours['error']:.0e}" if "error" in ours else "-"
        lines.append((model, precision, *times, str(ours.get("kernels", "-")), ratio, error))
    return str(table(lines))


def _right(row: Mapping[str, Any], precision: str) -> bool:
    return "milliseconds" in row and row["error"] <= TOLERANCE[precision]


def _cell(row: Mapping[str, Any] | None, precision: str) -> str:
    if row is None:
        return "-"
    if "milliseconds" not in row:
        return "failed"
    return f"{row['milliseconds'][1]:.4f}{'' if _right(row, precision) else ' !'}"


# ---- what comes with the package ------------------------------------------------------------------------------------


def ship(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """The measurements behind the chosen programs as a small database, to lie in ``extract/profiles``."""
    source, steps = database(folder, "float32"), lookup_steps([row for row in rows if row["precision"] == "float32"])
    keys = {row["key"] for row in rows if row["precision"] == "float32" and "key" in row}
    if not steps or not source.exists() or keys != keys & set(devices(source)):
        return None
    target = folder / f"{ARCHITECTURE}-shipped.db"
    target.unlink(missing_ok=True)
    for key in sorted(keys):
        measured = Profile(source, key, MODE)
        kept = Profile(target, key, MODE)
        for step in sorted(steps):
            right = sorted((w for w in measured.implementations(step) if w.samples), key=lambda way: way.seconds)
            # The fastest, and the fastest without generated kernels.
            library = [way for way in right if way.implementation == "library"]
            kept.add({way.implementation: way for way in (*right[:1], *library[:1])}.values())
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("pragma journal_mode=delete")
        connection.execute("vacuum")
    print(f"{target}: {target.stat().st_size >> 10} KiB, for extract/profiles")
    return target


if __name__ == "__main__":
    main()
