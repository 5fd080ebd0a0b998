"""Write a benchmark model to a file: `python -m bench.models NAME -o FILE.onnx`; `--list` shows the names."""

import argparse
import sys
from collections.abc import Sequence

import onnx

from bench.models.catalogue import CATALOGUE, find


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("name", nargs="?", help="name of the model")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write (default: NAME.onnx)")
    parser.add_argument("--list", action="store_true", help="list the models")
    options = parser.parse_args(arguments)
    if options.list:
        for model in CATALOGUE:
            for name in model.names:
                print(f"{name:26} {model.description}")
        return 0
    if options.name is None:
        parser.error("give the name of a model, or --list")
    try:
        model, batch = find(options.name)
    except KeyError as error:
        parser.error(str(error.args[0]))
    output = options.output or f"{options.name}.onnx"
    onnx.save(model.build(batch), output)
    print(f"wrote {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
