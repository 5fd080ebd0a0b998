"""Current architectures as they look when exported, and how much of a model is inside the algebra.

``python -m bench.models.architectures [--verify] [NAME | FILE.onnx …]`` prints the share of every architecture and real
graph, or of those named; with ``--verify`` also what the optimizer makes of them, nothing timed, everything compared.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from bench.models import architectures_language as language
from bench.models import architectures_vision as vision
from bench.models.light import light, names

ARCHITECTURES: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "resnet50": vision.resnet50,
    "mobilenetv3": vision.mobilenetv3,
    "efficientnet_b0": vision.efficientnet_b0,
    "convnext": vision.convnext,
    "vit": vision.vit,
    "swin": vision.swin,
    "unet": vision.unet,
    "bert": language.bert,
    "gpt2": language.gpt2,
    "t5_encoder": language.t5_encoder,
}


@dataclass(frozen=True)
class Coverage:
    """Nodes of a model: ``folded`` ones are constants; of the others ``algebraic`` are terms, ``outside`` are not."""

    name: str
    folded: int
    algebraic: int
    regions: int
    outside: Mapping[str, int]

    @property
    def share(self) -> float:
        """Algebraic nodes among those that are not folded."""
        nodes = self.algebraic + sum(self.outside.values())
        return self.algebraic / nodes if nodes else 1.0


def coverage(name: str, model: onnx.ModelProto | Path) -> Coverage:
    """How much of a model is inside the algebra."""
    from egraph_opt.frontends.onnx_reader import load
    from egraph_opt.frontends.regions import partition

    loaded = load(model)
    parts = partition(loaded)
    outside = Counter(loaded.nodes[i].op_type for i in parts.opaque)
    algebraic = len(loaded.nodes) - len(loaded.folded) - len(parts.opaque)
    return Coverage(name, len(loaded.folded), algebraic, len(parts.regions), outside)


def table(found: list[Coverage]) -> str:
    """The shares as text."""
    lines = [
        "| model | folded | algebraic | outside | share | regions | what is outside |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        what = ", ".join(f"{count} {operator}" for operator, count in sorted(one.outside.items()))
        lines.append(
            f"| {one.name} | {one.folded} | {one.algebraic} | {sum(one.outside.values())} | {100 * one.share:.1f} % "
            f"| {one.regions} | {what} |"
        )
    return "\n".join(lines)


def verified(model: onnx.ModelProto) -> str:
    """What the optimizer makes of a model when it measures nothing: everything it returns is compared."""
    from egraph_opt.pipeline import optimize

    report = optimize(model, cost="static").report
    if report.unchanged_because:
        return f"unchanged: {report.unchanged_because}" + "".join(f" ({r.reason})" for r in report.reverted)
    assert report.accuracy is not None
    return (
        f"verified, largest relative error {report.accuracy.max_relative:.1e}, {len(report.reverted)} regions reverted"
    )


def main(arguments: list[str]) -> None:
    """Print the table, and with ``--verify`` a line for each model."""
    wanted = [name for name in arguments if name != "--verify"] or [*ARCHITECTURES, *names()]
    found = []
    for name in wanted:
        if name.endswith(".onnx"):
            model = onnx.load(name)
        else:
            model = ARCHITECTURES[name](1) if name in ARCHITECTURES else light(name)
        found.append(coverage(Path(name).stem, model))
        if "--verify" in arguments:
            print(f"{found[-1].name}: {verified(model)}", flush=True)
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
