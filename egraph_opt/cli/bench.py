"""``egraph-opt bench``: how fast is a model, and how much faster is another one?"""

import argparse
from pathlib import Path

from egraph_opt.cli.arguments import add_input_options, add_runtime_option, table, whole_number

SUMMARY = "time one model, or two models interleaved"
DESCRIPTION = """\
Latency in onnxruntime, or in another runtime: median and quartiles over rounds. Two models take turns, on one thread
pool where one runtime runs both; the speed-up is the median of the ratios of neighbouring turns."""
EXAMPLES = (
    "egraph-opt bench model.onnx",
    "egraph-opt bench model.onnx model.opt.onnx --rounds 15 --threads 2",
    "egraph-opt bench model.onnx model.onnx --runtime onnxruntime,openvino     one model in two runtimes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("a", type=Path, metavar="A.onnx", help="the model to time")
    parser.add_argument("b", type=Path, nargs="?", metavar="B.onnx", help="the model to compare it with")
    parser.add_argument(
        "--rounds", type=whole_number(1), default=9, metavar="N", help="turns of each model (default 9)"
    )
    add_input_options(parser)
    add_runtime_option(parser)


def run(options: argparse.Namespace) -> int:
    """Time and print one row per model."""
    from egraph_opt.evaluation import benchmark
    from egraph_opt.runtime.timing import Spread, significant

    result = benchmark(
        options.a,
        options.b,
        rounds=options.rounds,
        seed=options.seed,
        shapes=dict(options.shape),
        threads=options.threads,
        trust_kernels=options.trust_kernels,
        runtime=options.runtime,
    )
    spreads = [result] if isinstance(result, Spread) else [result.a, result.b]
    rows = [("model", "median ms", "quartiles ms")]
    asked = options.runtime * (2 if len(options.runtime) == 1 else 1)
    for model, runtime, spread in zip((options.a, options.b), asked, spreads, strict=False):
        quartiles = f"{significant(spread.lower)}–{significant(spread.upper)}"
        rows.append((f"{model} in {runtime}" if runtime else str(model), significant(spread.median), quartiles))
    print(table(rows))
    if not isinstance(result, Spread):
        ratio = result.ratio
        quartiles = f"{ratio.lower:.2f}–{ratio.upper:.2f}"
        print(f"speed-up {ratio.median:.2f}x ({quartiles} over {result.rounds} interleaved rounds)")
    return 0
