"""``egraph-opt explain``: how an optimized model came about."""

import argparse
from pathlib import Path

from egraph_opt.errors import InputRejected, UsageError

SUMMARY = "show by which rules an optimized model came about"
DESCRIPTION = """\
Print, for every part of OUT.onnx that egraph-opt replaced, the chain of named rules from the original to the result
with the programs in between, what each chosen step and its runners-up cost, and why it was chosen."""
EXAMPLES = (
    "egraph-opt explain model.opt.onnx                    all parts, as text",
    "egraph-opt explain model.opt.onnx --node /conv1/Conv  what became of one node, or where one comes from",
    "egraph-opt explain model.opt.onnx --html why.html    one page with the graphs before and after, to click through",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("model", type=Path, metavar="OUT.onnx", help="a model that egraph-opt wrote")
    parser.add_argument(
        "--node", metavar="N", help="only what concerns this node or tensor, of the original or of the result"
    )
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a self-contained page instead of text")


def run(options: argparse.Namespace) -> int:
    """Read the explanation out of the model and show it."""
    from egraph_opt.frontends.onnx_metadata import metadata
    from egraph_opt.runtime.explanation import KEY, unpacked
    from egraph_opt.runtime.explanation_text import text

    found = metadata(options.model, KEY)
    if found is None:
        raise InputRejected(
            f"{options.model} holds no explanation: egraph-opt did not write it, or left the model unchanged"
        )
    explanation = unpacked(found)
    shown = text(explanation, options.node)
    if options.html is None:
        print(shown)
        return 0
    from egraph_opt.runtime.explanation_page import page

    if options.html.exists() and options.html.samefile(options.model):
        raise UsageError(f"{options.html} is the model itself; choose another file for the page")
    options.html.write_text(page(explanation, options.node), encoding="utf-8")
    print(f"written: {options.html}")
    return 0
