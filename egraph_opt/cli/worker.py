"""``egraph-opt worker``: make this machine a device on which others measure."""

import argparse
import sys

from egraph_opt.cli.arguments import key

SUMMARY = "measure for others: a device of a TVM RPC tracker"
DESCRIPTION = """\
Register this machine with a TVM RPC tracker and make the measurements that egraph-opt optimize --rpc-tracker asks for,
one at a time, until interrupted. Start the tracker with python -m tvm.exec.rpc_tracker --host=127.0.0.1 --port=9190.
There is no authentication, and whoever reaches the worker can run code on it: use loopback addresses and tunnels."""
EXAMPLES = (
    "egraph-opt worker --tracker 127.0.0.1:9190 --key epyc",
    "egraph-opt optimize model.onnx --rpc-tracker 127.0.0.1:9190 --rpc-key epyc    on another machine, or here",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT", help="the tracker's address")
    parser.add_argument(
        "--key",
        required=True,
        type=key,
        metavar="KEY",
        help="what clients ask for; give it to machines of one kind only",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="the interface to listen on (default 127.0.0.1)"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from egraph_opt.backends.runner import Machine
    from egraph_opt.backends.tracker import serve

    def ready(port: int) -> None:
        print(f"measuring for {options.tracker} on {options.host}:{port} as {options.key}", file=sys.stderr, flush=True)

    print(Machine.here(None).device, file=sys.stderr)
    serve(options.tracker, options.key, host=options.host, ready=ready)
    return 0
