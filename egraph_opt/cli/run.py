"""``egraph-opt run``: run a GPU program."""

import argparse
from pathlib import Path

from egraph_opt.cli.arguments import table, whole_number
from egraph_opt.errors import InputRejected

SUMMARY = "run a GPU program and time it"
DESCRIPTION = """\
Run what egraph-opt optimize --target cuda:… wrote, as one CUDA graph. Needs Python, numpy and torch. A program holds
code that runs on the GPU: run only programs of people you trust."""
EXAMPLES = (
    "egraph-opt run model.gpu                                   latency on random inputs",
    "egraph-opt run model.gpu --inputs in.npz --outputs out.npz    arrays by input name",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("program", type=Path, metavar="PROGRAM", help="what egraph-opt optimize --target cuda:… wrote")
    parser.add_argument("--inputs", type=Path, metavar="FILE.npz", help="inputs by name (default: random ones)")
    parser.add_argument("--outputs", type=Path, metavar="FILE.npz", help="where to write the outputs")
    parser.add_argument(
        "--device", choices=("cuda", "host"), default="cuda", help="cuda (default), or the processor in its place"
    )
    parser.add_argument("--tf32", action="store_true", help="let the GPU's libraries use TF32")
    parser.add_argument(
        "--rounds", type=whole_number(0), default=9, metavar="N", help="timed rounds (default 9; 0: none)"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="seed of random inputs (default 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Run, write the outputs, print latencies."""
    from egraph_opt.gpu.devices import device_of
    from egraph_opt.gpu.files import Program, read_arrays, write_arrays
    from egraph_opt.gpu.running import Runner, random_inputs
    from egraph_opt.runtime.quantities import byte_text
    from egraph_opt.runtime.timing import significant

    program = Program.read(options.program)
    if options.outputs is not None and not options.outputs.parent.is_dir():
        raise InputRejected(f"the outputs cannot be written to {options.outputs}")
    inputs = random_inputs(program, options.seed) if options.inputs is None else read_arrays(options.inputs)
    device = device_of(options.device, program.architecture, tf32=options.tf32)
    runner = Runner(program, device)
    outputs = runner.run(inputs)
    if options.outputs is not None:
        write_arrays(options.outputs, outputs)
        print(f"written: {options.outputs}")
    rows = [("output", "shape", "largest magnitude")]
    for name, value in outputs.items():
        largest = significant(float(abs(value).max(initial=0.0)))
        rows.append((name, "x".join(map(str, value.shape)) or "scalar", largest))
    print(table(rows))
    peak, arena = byte_text(program.memory().peak), byte_text(runner.memory.peak)
    print(f"intermediate results take {peak} at once; those that steps can place lie in one arena of {arena}")
    if options.rounds:
        spread = runner.latency(inputs, rounds=options.rounds)
        print(f"latency on {device.key}: {spread} ms (expected {significant(program.seconds * 1e3)} ms)")
    return 0
