"""Tensor-program superoptimizer for ONNX models.

``egraph_opt.optimize("model.onnx")`` is the whole story in one call; ``egraph_opt.pipeline`` tells it step by step.
``egraph_opt.EGraph`` and ``egraph_opt.algebra`` are the pieces for scripts, ``egraph_opt.rule_group`` and what comes
with it the language of rules; ``egraph_opt/examples/`` shows both.
Every name below is loaded on first use, so importing this package loads neither egglog, tvm, onnxruntime nor onnx.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from egraph_opt import algebra as algebra
    from egraph_opt.derive import derive_operator as derive_operator
    from egraph_opt.egraph.language import ArgsVar as ArgsVar
    from egraph_opt.egraph.language import BufferVar as BufferVar
    from egraph_opt.egraph.language import ExtentsVar as ExtentsVar
    from egraph_opt.egraph.language import IntVar as IntVar
    from egraph_opt.egraph.language import MapVar as MapVar
    from egraph_opt.egraph.language import Member as Member
    from egraph_opt.egraph.language import Rule as Rule
    from egraph_opt.egraph.language import RuleGroup as RuleGroup
    from egraph_opt.egraph.language import TensorVar as TensorVar
    from egraph_opt.egraph.language import TextVar as TextVar
    from egraph_opt.egraph.language import apply as apply
    from egraph_opt.egraph.language import approximate as approximate
    from egraph_opt.egraph.language import becomes as becomes
    from egraph_opt.egraph.language import call as call
    from egraph_opt.egraph.language import constant as constant
    from egraph_opt.egraph.language import each as each
    from egraph_opt.egraph.language import equal as equal
    from egraph_opt.egraph.language import fill as fill
    from egraph_opt.egraph.language import holds as holds
    from egraph_opt.egraph.language import jointly as jointly
    from egraph_opt.egraph.language import rule_group as rule_group
    from egraph_opt.egraph.language import together as together
    from egraph_opt.errors import EgraphOptError as EgraphOptError
    from egraph_opt.evaluation import benchmark as benchmark
    from egraph_opt.evaluation import check as check
    from egraph_opt.ir.schedules import schedule as schedule
    from egraph_opt.ir.schedules import tuning_model as tuning_model
    from egraph_opt.packs import Pack as Pack
    from egraph_opt.pipeline import Result as Result
    from egraph_opt.pipeline import optimize as optimize
    from egraph_opt.runtime.report import Report as Report
    from egraph_opt.scripting import EGraph as EGraph

    __version__: str

# The language in which rules are declared.
_LANGUAGE = (
    "ArgsVar",
    "BufferVar",
    "ExtentsVar",
    "IntVar",
    "MapVar",
    "Member",
    "Rule",
    "RuleGroup",
    "TensorVar",
    "TextVar",
    "apply",
    "approximate",
    "becomes",
    "call",
    "constant",
    "each",
    "equal",
    "fill",
    "holds",
    "jointly",
    "rule_group",
    "together",
)
_HOME = {
    "EGraph": "egraph_opt.scripting",
    "EgraphOptError": "egraph_opt.errors",
    "Pack": "egraph_opt.packs",
    "Report": "egraph_opt.runtime.report",
    "Result": "egraph_opt.pipeline",
    "benchmark": "egraph_opt.evaluation",
    "check": "egraph_opt.evaluation",
    "derive_operator": "egraph_opt.derive",
    "optimize": "egraph_opt.pipeline",
    "schedule": "egraph_opt.ir.schedules",
    "tuning_model": "egraph_opt.ir.schedules",
    **dict.fromkeys(_LANGUAGE, "egraph_opt.egraph.language"),
}

__all__ = [
    "ArgsVar",
    "BufferVar",
    "EGraph",
    "EgraphOptError",
    "ExtentsVar",
    "IntVar",
    "MapVar",
    "Member",
    "Pack",
    "Report",
    "Result",
    "Rule",
    "RuleGroup",
    "TensorVar",
    "TextVar",
    "__version__",
    "algebra",
    "apply",
    "approximate",
    "becomes",
    "benchmark",
    "call",
    "check",
    "constant",
    "derive_operator",
    "each",
    "equal",
    "fill",
    "holds",
    "jointly",
    "optimize",
    "rule_group",
    "schedule",
    "together",
    "tuning_model",
]


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: object = version("egraph-opt")
        except PackageNotFoundError:
            value = "unknown (not installed)"
    elif name == "algebra":
        value = importlib.import_module("egraph_opt.algebra")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
