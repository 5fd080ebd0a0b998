"""The optimizers of the table. Each writes ``optimized.onnx`` into a folder, as its users would make it.

None is imported before it is used: each runs in a process of its own, and a peer need not be installed.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

FILE = "optimized.onnx"
OURS = "egraph-opt"
# Seconds after which a search with measuring is content with what it has.
MEASURED_SECONDS = 30.0


class RejectedError(Exception):
    """The optimizer refuses the model in a message of its own; anything else it raises is an error."""


class DoubtfulError(Exception):
    """The optimizer itself reports a failure inside, although it wrote a model."""


@dataclass(frozen=True)
class Optimizer:
    """``function`` gets a model and a folder and writes the result there; it must be importable by name.

    Raises RejectedError, or anything else. ``package`` must be installed, ``setting`` is printed below the table.
    """

    name: str
    function: Callable[[onnx.ModelProto, Path], None]
    package: str
    setting: str = ""

    @property
    def version(self) -> str | None:
        """The installed version of the package; None when it is not installed."""
        if self.package == OURS:
            return "of this checkout"
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def egraph_opt(
    model: onnx.ModelProto, folder: Path, *, portable: bool = False, force: bool = False, cost: str = "static"
) -> None:
    """This optimizer. ``force`` replaces every part inside the algebra, worth it or not."""
    from egraph_opt.errors import InputRejected
    from egraph_opt.frontends import regions
    from egraph_opt.pipeline import optimize

    if force:
        regions._worthwhile = lambda *_: True
    try:
        result = optimize(
            model,
            cost=cost,
            portable=portable,
            threads=1,
            time_limit=MEASURED_SECONDS if cost == "measured" else None,
            profile_db=folder.parent / "profile.sqlite" if cost == "measured" else None,
        )
    except InputRejected as error:
        raise RejectedError(str(error)) from error
    result.save(folder / FILE)
    failures = [entry.reason for entry in result.report.reverted if "internal error" in entry.reason]
    if failures:
        raise DoubtfulError(failures[0])


def onnxsim(model: onnx.ModelProto, folder: Path) -> None:
    """onnxsim with its defaults."""
    import onnxsim

    simplified, valid = onnxsim.simplify(model)
    if not valid:
        raise RejectedError("onnxsim says that its result is not valid")
    onnx.save(simplified, folder / FILE)


def onnxslim(model: onnx.ModelProto, folder: Path) -> None:
    """onnxslim with its defaults."""
    import onnxslim

    onnx.save(onnxslim.slim(model), folder / FILE)


def onnxoptimizer(model: onnx.ModelProto, folder: Path) -> None:
    """onnxoptimizer with its default passes (fusions and eliminations)."""
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(model), folder / FILE)


def onnxruntime(model: onnx.ModelProto, folder: Path, *, level: str = "ORT_ENABLE_EXTENDED") -> None:
    """The optimized model that onnxruntime saves."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / FILE)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ours(*, portable: bool = False, force: bool = False, cost: str = "static") -> Optimizer:
    """This optimizer with these options as an entry of the table."""
    words = [OURS] + ["portable"] * portable + ["forced"] * force + ["measured"] * (cost == "measured")
    setting = f"--cost {cost}{' --portable' * portable}{', every region replaced' * force}"
    function = partial(egraph_opt, portable=portable, force=force, cost=cost)
    return Optimizer(" ".join(words), function, OURS, setting)


PEERS: Sequence[Optimizer] = (
    Optimizer("onnxsim", onnxsim, "onnxsim", "simplify(model)"),
    Optimizer("onnxslim", onnxslim, "onnxslim", "slim(model)"),
    Optimizer("onnxoptimizer", onnxoptimizer, "onnxoptimizer", "optimize(model), its default passes"),
    Optimizer("onnxruntime", onnxruntime, "onnxruntime", "optimized_model_filepath, ORT_ENABLE_EXTENDED"),
)
