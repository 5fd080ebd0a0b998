"""Writes OPERATORS.md: python -m bench.operators."""

from pathlib import Path

from egraph_opt.frontends.onnx_tiers import document

PATH = Path(__file__).resolve().parents[1] / "OPERATORS.md"


def main() -> None:
    """Write the table of operators beside the README."""
    PATH.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
