"""A case of one version of an operator, and how it is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import defs

Shape = tuple[int, ...]

# Only a note that the operator is gone.
REMOVED = (("Upsample", 10),)


@dataclass(frozen=True)
class Case:
    """One node: inputs by shape (drawn) or as arrays (constants), "" for one left out.

    ``declined`` is part of the reason for a node that is outside the algebra; ``oracle`` computes the result where
    neither onnxruntime nor onnx's reference evaluator knows the version.
    """

    inputs: Sequence[Shape | np.ndarray | str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    declined: str = ""
    oracle: Callable[..., Any] | None = None
    positive: bool = False


def case(*inputs: Shape | np.ndarray | str, outputs: int = 1, declined: str = "", oracle: Any = None,
         positive: bool = False, **attributes: Any) -> Case:  # fmt: skip
    return Case(inputs, attributes, outputs, declined, oracle, positive)


def versions(op_type: str) -> list[int]:
    """The versions of the standard operator that onnx defines, ascending."""
    found = [s for s in defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", op_type)]
    return sorted(s.since_version for s in found if (op_type, s.since_version) not in REMOVED)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def weights(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attributes_of(op_type: str, version: int) -> list[str]:
    return sorted(defs.get_schema(op_type, version, "").attributes)
