"""Schedules of your own: one arrangement of a kernel's loops, a space of them to be tuned, and what tuning asks first.

TVM's schedule primitives keep what a kernel computes, and it is held against the interpreter before it is timed.
In a file of your own: ``egraph-opt optimize model.onnx --rules +mine.py --trials 16``.
"""

import sqlite3
import tempfile
from typing import Any

import numpy as np

from egraph_opt import Pack, optimize, schedule, tuning_model
from egraph_opt.algebra import apply, tensor, weight
from egraph_opt.ir.terms import Tensor
from egraph_opt.scripting import EGraph


def long_rows(body: Tensor) -> bool:
    """Kernels whose last axis holds whole vectors."""
    return body.extents[-1:] != () and body.extents[-1] % 16 == 0


@schedule(when=long_rows)
def in_vectors(arrangement: Any) -> None:
    """Vectors of 16; ``arrangement`` is a tvm.s_tir.Schedule, and the last block of every kernel is called out."""
    *outer, last = arrangement.get_loops(arrangement.get_sblock("out"))
    rest, lanes = arrangement.split(last, [None, 16])
    arrangement.vectorize(lanes)
    arrangement.parallel(arrangement.fuse(*outer, rest))


@schedule(when=long_rows, space=True)
def unrolled(arrangement: Any) -> None:
    """All ways to share a row out to tasks and unrolled tiles."""
    *outer, last = arrangement.get_loops(arrangement.get_sblock("out"))
    rest, tile = arrangement.split(last, arrangement.sample_perfect_tile(last, n=2, max_innermost_factor=64))
    arrangement.parallel(arrangement.fuse(*outer, rest))
    arrangement.unroll(tile)


@tuning_model
def short_traces_first() -> Any:
    """A MetaSchedule cost model: here without any learning."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    @derived_object
    class ShortFirst(PyCostModel):  # type: ignore[misc, unused-ignore]
        def load(self, path: str) -> None: ...

        def save(self, path: str) -> None: ...

        def update(self, context: Any, candidates: Any, results: Any) -> None: ...

        def predict(self, context: Any, candidates: Any) -> Any:
            return np.array([1.0 / len(candidate.sch.trace.insts) for candidate in candidates])

    return ShortFirst()


PACK = Pack("my-schedules", schedules=(in_vectors, unrolled, short_traces_first))


def main() -> None:
    result = apply("tanh", tensor("x", (64, 512)) * weight("w", (64, 512), np.ones((64, 512))) + 1)
    model = EGraph.of(result).extract().to_onnx()
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/profile.sqlite"
        report = optimize(model, rules=(PACK,), trials=6, profile_db=database, threads=1).report
        query = "select count(*) from measurements where implementation like 'kernel [%' and error = ''"
        ((count,),) = sqlite3.connect(database).execute(query)
    print(f"{count} schedules were replayed, checked and timed")
    print(report.table())
    assert count > 1
    assert not any("is not used" in note for note in report.notes)


if __name__ == "__main__":
    main()
