"""Kernels whose loops a trace arranges: it is replayed on the kernel's blocks, and TVM's own passes make the code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.build import codegen_build

from egraph_opt.backends import tvm_blocks, tvm_trace
from egraph_opt.backends.tvm_emit import CodeTooLongError, Emitter
from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.ir.terms import Source, Tensor

# Expressions and statements of one kernel; LLVM takes about 0.1 ms for each, and far more where unrolling ran away.
CODE_LIMIT = 12_000


def scheduled_module(name: str, body: Tensor, inputs: Sequence[Source], trace: str) -> Any:
    """The module with the function ``name(inputs..., output)`` as the trace arranges it.

    Raises EgraphOptError where the body has no blocks or the trace does not fit them.
    """
    found = tvm_trace.replayed(trace, tvm_blocks.blocks_module(body, inputs)).mod
    return tvm.IRModule({name: found[tvm_blocks.FUNCTION].with_attr("global_symbol", name)})


def compiled(module: Any, goal: Any) -> Any:
    """The machine code of a scheduled module.

    Raises CodeTooLongError where unrolling makes too much code, EgraphOptError where TVM refuses the arrangement.
    """
    try:
        lowered = tirx.transform.BindTarget(goal.with_host(goal))(module)
        lowered = _in_registers(tvm.transform.Sequential(_loops())(lowered))
        lowered = tvm.transform.Sequential(_code())(lowered)
        if _size(lowered) > CODE_LIMIT:
            raise CodeTooLongError("a kernel becomes too much code to be compiled under this schedule")
        finish = [tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()]
        return codegen_build(tvm.transform.Sequential(finish)(lowered), goal)
    except EgraphOptError:
        raise
    except Exception as error:
        raise EgraphOptError(one_line(f"TVM refuses the schedule: {type(error).__name__}: {error}")) from error


def _loops() -> list[Any]:
    """TVM's own passes, as far as processors need them, from blocks to loops of vectors."""
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        # What kept values from the simplifier would keep them from vectors, too.
        tvm.transform.module_pass(lambda module, _: _changed(module, tvm.ir.Call, tvm_blocks.unwrapped), opt_level=0),
        tirx.transform.VectorizeLoop(True),
    ]


def _code() -> list[Any]:
    """The passes from loops of vectors to a function that can be called."""
    return [
        tirx.transform.StorageRewrite(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]


def _size(module: Any) -> int:
    count = 0

    def found(_: object) -> None:
        nonlocal count
        count += 1

    for function in module.functions.values():
        tvm_ffi.structural_walk(function.body, ((tvm.ir.Expr, tirx.Stmt), found))
    return count


def _in_registers(module: Any) -> Any:
    """Values that stores bind, in buffers that LLVM turns into registers: TVM puts the values of variables in their
    place wherever it simplifies or analyses them, which is exponential for chains.
    """
    return _changed(module, tirx.BufferStore, _stored)


def _changed(module: Any, kind: Any, change: Callable[[Any], Any]) -> Any:
    functions = {name: tvm_ffi.structural_map(f, (kind, change)) for name, f in module.functions.items()}
    return tvm.IRModule(functions, attrs=module.attrs)


def _stored(store: Any) -> Any:
    emitter = Emitter(CODE_LIMIT)
    registers: dict[Any, Any] = {}

    def moved(value: Any) -> Any:
        return tvm_ffi.structural_map(value, (tvm.ir.Var, lambda variable: registers.get(variable, variable)))

    def bare(value: Any) -> Any:
        """The value without what it binds, which is emitted; a step of a reduction may bind its second operand."""
        while isinstance(value, tirx.Let):
            registers[value.var] = emitter.let(moved(value.value))
            value = value.body
        if isinstance(value, tirx.Add | tirx.Max) and isinstance(value.b, tirx.Let):
            return type(value)(value.a, bare(value.b))
        if isinstance(value, tvm.ir.Call) and isinstance(value.args[-1], tirx.Let):
            return tvm.ir.Call(value.op, [*value.args[:-1], bare(value.args[-1])], ret_ty=value.ty)
        return moved(value)

    value = bare(store.value)
    if not registers:
        return store
    emitter.emit(tirx.BufferStore(store.buffer, value, store.indices))
    return emitter.body()
