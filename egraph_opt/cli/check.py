"""``egraph-opt check``: do two models compute the same?"""

import argparse
from pathlib import Path

from egraph_opt.cli.arguments import add_input_options, add_runtime_option, table, whole_number
from egraph_opt.errors import VerificationFailed

SUMMARY = "compare two models on random inputs"
DESCRIPTION = """\
Feed both models the same random inputs and compare all outputs. Exit code 0: equal within rounding, 4: different."""
EXAMPLES = (
    "egraph-opt check model.onnx model.opt.onnx",
    "egraph-opt check a.onnx b.onnx --runs 5 --shape batch=16",
    "egraph-opt check a.onnx b.onnx --seed 17             replays one input of an earlier check",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("a", type=Path, metavar="A.onnx", help="the model that is right")
    parser.add_argument("b", type=Path, metavar="B.onnx", help="the model to check")
    parser.add_argument("--runs", type=whole_number(1), default=1, metavar="N", help="random inputs to try (default 1)")
    add_input_options(parser)
    add_runtime_option(parser)


def run(options: argparse.Namespace) -> int:
    """Compare and print one row per output and run."""
    from egraph_opt.evaluation import check

    result = check(
        options.a,
        options.b,
        seed=options.seed,
        runs=options.runs,
        shapes=dict(options.shape),
        threads=options.threads,
        trust_kernels=options.trust_kernels,
        runtime=options.runtime,
    )
    rows = [("output", "type", "shape", "seed", "largest error", "of the range", "verdict")]
    for seed, errors in zip(result.seeds, result.runs, strict=True):
        for error in errors:
            shape = "x".join(map(str, error.shape)) or "scalar"
            verdict = "equal" if error.within else f"DIFFERENT {error.mismatch}".rstrip()
            sizes = (f"{error.max_absolute:.1e}", f"{error.max_relative:.1e}")
            rows.append((error.name, error.dtype, shape, str(seed), *sizes, verdict))
    print(table(rows))
    if result.equal:
        count = len(result.seeds)
        print(f"equal on {count} random input{'s' if count > 1 else ''} (seed {options.seed})")
        return 0
    failed = next(
        seed
        for seed, errors in zip(result.seeds, result.runs, strict=True)
        if not all(error.within for error in errors)
    )
    shapes = "".join(f" --shape {name}={','.join(map(str, shape))}" for name, shape in options.shape)
    print(f"different; replay: egraph-opt check {options.a} {options.b} --seed {failed}{shapes}")
    return VerificationFailed.exit_code
