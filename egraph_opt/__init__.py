"""Tensor-program superoptimizer for ONNX models.

``egraph_opt.optimize("model.onnx")`` is the whole story in one call; ``egraph_opt.pipeline`` tells it step by step.
Every name below is loaded on first use, so importing this package loads neither egglog, tvm, onnxruntime nor onnx.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from egraph_opt.derive import derive_operator as derive_operator
    from egraph_opt.errors import EgraphOptError as EgraphOptError
    from egraph_opt.evaluation import benchmark as benchmark
    from egraph_opt.evaluation import check as check
    from egraph_opt.pipeline import Result as Result
    from egraph_opt.pipeline import optimize as optimize
    from egraph_opt.runtime.report import Report as Report

    __version__: str

_HOME = {
    "EgraphOptError": "egraph_opt.errors",
    "Report": "egraph_opt.runtime.report",
    "Result": "egraph_opt.pipeline",
    "benchmark": "egraph_opt.evaluation",
    "check": "egraph_opt.evaluation",
    "derive_operator": "egraph_opt.derive",
    "optimize": "egraph_opt.pipeline",
}

__all__ = [
    "EgraphOptError",
    "Report",
    "Result",
    "__version__",
    "benchmark",
    "check",
    "derive_operator",
    "optimize",
]


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: object = version("egraph-opt")
        except PackageNotFoundError:
            value = "unknown (not installed)"
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
