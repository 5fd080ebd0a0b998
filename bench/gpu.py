"""The benchmark models on a GPU, on one machine or on two: ``python -m bench.gpu FOLDER``, or ``bench/gpu.sh FOLDER``.

Four steps, each done where it can be and left out where its files exist already: plan (here: the CUDA toolkit, no GPU)
writes a bundle of every model; profile (the GPU machine: Python, numpy, torch) fills one database; choose (here) writes
the programs; run (the GPU machine) checks them against onnxruntime's answers and times them. On two machines, carry the
folder to and fro and run the same command on both in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from egraph_opt.errors import BackendMissing, EgraphOptError
from egraph_opt.gpu.device import Device
from egraph_opt.gpu.devices import device_of
from egraph_opt.gpu.files import MODE, Bundle, Program, read_arrays, write_arrays

ARCHITECTURE = "sm_90"
# The same as cuDNN and cuBLAS alone: programs without generated kernels.
LIBRARY_ONLY = "library"
# How far an answer may be from onnxruntime's, as a share of its largest magnitude.
TOLERANCE = {"float32": 1e-4, "TF32": 5e-2}


def main() -> None:
    """Do all steps that can be done on this machine."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, help="where bundles, the database, programs and results lie")
    parser.add_argument("models", nargs="*", help="benchmark models (default: all)")
    parser.add_argument("--tf32", action="store_true", help="let the GPU's libraries use TF32")
    parser.add_argument("--device", choices=("cuda", "host"), default="cuda", help="host: the processor, for a trial")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    has_rules = importlib.util.find_spec("egglog") is not None and importlib.util.find_spec("onnx") is not None
    database = options.folder / f"{'tf32' if options.tf32 else 'float32'}.db"
    if has_rules and shutil.which("nvcc"):
        plan(options.folder, options.models)
    bundles = sorted(options.folder.glob("*.bundle"))
    try:
        device: Device | None = device_of(options.device, ARCHITECTURE, tf32=options.tf32)
    except (BackendMissing, EgraphOptError) as missing:
        print(f"no measuring here: {missing}")
        device = None
    if device is not None:
        profile(bundles, device, database)
    if has_rules and database.exists():
        choose(bundles, database)
    programs = sorted(options.folder.glob("*.gpu"))
    if device is not None and programs:
        run(programs, device, options.folder, "TF32" if options.tf32 else "float32")


def plan(folder: Path, wanted: list[str]) -> None:
    """Bundles of the models, and onnxruntime's answers for random inputs."""
    import onnx

    from bench.models import catalogue
    from egraph_opt import offline
    from egraph_opt.backends.onnxruntime import input_specs, make_session, output_specs, random_inputs

    for name in wanted or catalogue.names():
        if (folder / f"{name}.bundle").exists():
            continue
        begun = time.monotonic()
        model = catalogue.get(name)
        onnx.save(model, folder / f"{name}.onnx")
        try:
            bundle = offline.plan(folder / f"{name}.onnx")
        except EgraphOptError as error:
            print(f"{name}: no bundle: {error}")
            continue
        session = make_session(folder / f"{name}.onnx")
        inputs = random_inputs(input_specs(session))
        outputs = dict(zip((s.name for s in output_specs(session)), session.run(None, inputs), strict=True))
        write_arrays(folder / f"{name}.npz", {**inputs, **{f"expected {key}": value for key, value in outputs.items()}})
        bundle.write(folder / f"{name}.bundle")
        kernels = sum(work.is_kernel for work in bundle.works)
        print(f"{name}: {len(bundle.works) - kernels} calls, {kernels} kernels, {time.monotonic() - begun:.0f} s")


def profile(bundles: list[Path], device: Device, database: Path) -> None:
    """Measure what is not in the database yet."""
    from egraph_opt.extract.profile import Profile
    from egraph_opt.gpu.profiling import measure

    for path in bundles:
        begun = time.monotonic()
        bundle = Bundle.read(path)
        failures = measure(bundle, device, Profile(database, device.key, MODE))
        print(f"{path.stem}: {len(bundle.works)} ways, {len(failures)} failed, {time.monotonic() - begun:.0f} s")
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)


def choose(bundles: list[Path], database: Path) -> None:
    """The cheapest program of each model by the measurements, with kernels and without."""
    from egraph_opt import offline

    for path in bundles:
        for kernels in (True, False):
            target = path.with_suffix(".gpu" if kernels else f".{LIBRARY_ONLY}.gpu")
            if target.exists():
                continue
            try:
                program = offline.choose(path.with_suffix(".onnx"), database, kernels=kernels)
            except EgraphOptError as error:
                print(f"{target.name}: no program: {error}")
                continue
            program.write(target)


def run(programs: list[Path], device: Device, folder: Path, precision: str) -> None:
    """Check and time the programs; a table on stdout, JSON in the folder."""
    from egraph_opt.cli.arguments import table
    from egraph_opt.gpu.running import Runner

    rows = [("program", "calls", "kernels", "ms", "quartiles", "expected ms", "error")]
    results: list[dict[str, Any]] = []
    for path in programs:
        program = Program.read(path)
        arrays = read_arrays(folder / f"{path.name.partition('.')[0]}.npz")
        works = [step.work for step in program.steps if step.work is not None]
        kernels = sum(work.is_kernel for work in works)
        try:
            runner = Runner(program, device)
            outputs = runner.run(arrays)
            error = max(_error(value, arrays[f"expected {name}"]) for name, value in outputs.items())
            spread = runner.latency(arrays)
        except (EgraphOptError, RuntimeError, MemoryError) as problem:
            print(f"{path.name}: {problem}", file=sys.stderr)
            continue
        wrong = " WRONG" if not error <= TOLERANCE[precision] else ""
        cells = (f"{spread.median:.4f}", f"{spread.lower:.4f}–{spread.upper:.4f}", f"{program.seconds * 1e3:.4f}")
        rows.append((path.stem, str(len(works) - kernels), str(kernels), *cells, f"{error:.1e}{wrong}"))
        results.append(
            {
                "program": path.stem,
                "calls": len(works) - kernels,
                "kernels": kernels,
                "milliseconds": [spread.lower, spread.median, spread.upper],
                "expected": program.seconds * 1e3,
                "error": error,
            }
        )
    print(table(rows))
    found = {"device": device.key, "precision": precision, "date": time.strftime("%Y-%m-%d"), "programs": results}
    (folder / f"results-{precision}.json").write_text(json.dumps(found, indent=1) + "\n")


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(value - expected).max(initial=0.0) / max(float(np.abs(expected).max(initial=0.0)), 1e-30))


if __name__ == "__main__":
    main()
