"""Kernels that users wrote: checked, compiled by TVM's own pipeline, run in the kernel library like generated ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import tvm
import tvm_ffi
from tvm import te, tirx

from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.ir import library
from egraph_opt.ir.expr import Extents

# Tasks of a parallel loop; onnxruntime's pool runs them.
TASKS = 24


@dataclass(frozen=True)
class OwnKernel:
    """A user's kernel for one call: arguments of these extents in order, and the TVM function that computes it."""

    operator: str
    arguments: tuple[Extents, ...]
    extents: Extents
    text: str
    function: Any = field(compare=False, repr=False)

    # What the kernel library needs to know of any kernel.
    tasks: int = TASKS
    shaped: bool = True

    @cached_property
    def name(self) -> str:
        """``k_``, the operator and a hash of the code: a changed kernel has another name."""
        content = f"{self.text}|{self.arguments}|{self.extents}"
        return f"k_{self.operator}_{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def own_kernel(operator: str, attributes: str, arguments: Sequence[Extents], extents: Extents) -> OwnKernel:
    """The kernel of an added operator for a call.

    Raises EgraphOptError, naming the operator, where it has none for these extents or returns no such function.
    """
    return _own_kernel(library.lookup(operator), attributes, tuple(arguments), extents)


@lru_cache(maxsize=4096)
def _own_kernel(
    record: library.LibraryOperator, attributes: str, arguments: tuple[Extents, ...], extents: Extents
) -> OwnKernel:
    operator = record.name
    if record.kernel is None:
        raise EgraphOptError(f"{operator} has no kernel")
    if library.EPILOGUE_ATTRIBUTE in library.parse_attributes(attributes):
        raise EgraphOptError(f"the kernel of {operator} takes no function behind it")
    try:
        made = record.kernel(*arguments, **record.typed(library.parse_attributes(attributes)))
        if isinstance(made, list | tuple):
            made = te.create_prim_func(list(made))
    except EgraphOptError:
        raise
    except Exception as error:
        raise EgraphOptError(one_line(f"the kernel of {operator} raised {type(error).__name__}: {error}")) from error
    function = _checked(operator, made, [*arguments, extents])
    return OwnKernel(operator, arguments, extents, function.script(), function)


def compiled(kernel: OwnKernel, target: Any) -> Any:
    """The kernel as a TVM module with the function ``kernel.name``."""
    function = _unaligned(kernel.function).with_attr("global_symbol", kernel.name)
    try:
        return tvm.compile(tvm.IRModule({kernel.name: function}), target).mod
    except Exception as error:
        raise EgraphOptError(one_line(f"the kernel of {kernel.operator} does not compile: {error}")) from error


def _checked(operator: str, function: Any, wanted: Sequence[Extents]) -> Any:
    if not isinstance(function, tirx.PrimFunc):
        raise EgraphOptError(
            f"the kernel of {operator} is a {type(function).__name__}, not a TVM PrimFunc or te tensors"
        )
    found: list[str] = []
    for parameter in function.params:
        if not tirx.is_buffer_var(parameter):
            raise EgraphOptError(f"parameter {parameter.name} of the kernel of {operator} is no buffer")
        shape = [int(n) if isinstance(n, int | tirx.IntImm) else str(n) for n in parameter.ty.shape]
        found.append(f"{parameter.ty.dtype}{shape}")
    expected = [f"float32{list(extents)}" for extents in wanted]
    if found != expected:
        raise EgraphOptError(
            f"the kernel of {operator} takes {', '.join(found)}; it is called with {', '.join(expected)},"
            " of which the last is the result"
        )
    return function


def _unaligned(function: Any) -> Any:
    """The function with parameters that need no more than the alignment of their elements, as runtimes give them."""
    moved: dict[Any, Any] = {}
    for parameter in function.params:
        old = parameter.ty
        alignment = max(1, tvm.DataType(str(old.dtype.dtype)).bits // 8)
        kind = tirx.buffer._ffi_api.BufferType(
            old.storage_scope,
            old.dtype,
            old.shape,
            old.strides,
            old.elem_offset,
            alignment,
            old.offset_factor,
            old.layout,
            old.allocated_addr,
            None,
        )
        moved[parameter] = tirx.buffer._ffi_api.BufferVar(parameter.name, kind, None)
    return tvm_ffi.structural_map(function, (tvm.ir.Var, lambda variable: moved.get(variable, variable)))
