"""An operator with a kernel of your own: rows divided by their length, written in TVM.

The kernel is held against the operator's meaning before it is timed, and the model that uses it against the original.
"""

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from egraph_opt import optimize
from egraph_opt.algebra import apply, tensor, weight
from egraph_opt.egraph import language
from egraph_opt.egraph.language import MapVar, Rule, TensorVar, becomes, call, holds, rule_group
from egraph_opt.ir import expr, maps
from egraph_opt.ir.library import LibraryOperator
from egraph_opt.packs import Pack
from egraph_opt.scripting import EGraph


def kernel(x: expr.Extents) -> list[Any]:
    """The TVM function for one shape as ``te`` tensors, the argument first and the result last."""
    from tvm import te

    source, k = te.placeholder(x, name="source"), te.reduce_axis((0, x[1]), name="k")
    squares = te.compute(x[:1], lambda i: te.sum(source[i, k] * source[i, k], axis=k), name="squares")
    return [source, te.compute(x, lambda i, j: source[i, j] * te.rsqrt(squares[i]), name="result")]


NORMALIZE = LibraryOperator(
    "NormalizeRows",
    arity=1,
    shape=lambda x: x,
    numpy=lambda x: x / np.sqrt((x * x).sum(axis=1, keepdims=True)),
    flops=lambda x: 3 * x[0] * x[1],
    kernel=kernel,
)


def by_rows(x: expr.Extents, m: maps.IndexMap) -> bool:
    """Whether ``m`` gives elements of a matrix what belongs to their rows."""
    return len(x) == 2 and m == maps.index_map(x[:1], x, [expr.iterator(0)])


@rule_group("normalize")
def normalize(x: TensorVar, m: MapVar) -> Iterator[Rule]:
    """Rows divided by their lengths, as one operator."""
    divided = language.apply("div", x, language.apply("sqrt", (x * x).sum(1)).view(m))
    called = call("NormalizeRows", "", [x.compute()], x.extents).read()
    yield becomes("normalize", divided, called, given=[holds(by_rows, x.extents, m)], exactness="reassociates")


PACK = Pack("normalize", groups=(normalize,), operators=(NORMALIZE,))


def main() -> None:
    w = np.random.default_rng(0).standard_normal((128, 96))
    product = tensor("x", (64, 128)) @ weight("w", (128, 96), w)
    length = apply("sqrt", (product * product).sum(1))
    plain = EGraph.of(product / length.reshape(64, 1).broadcast(64, 96))
    plain.saturate()
    model = plain.extract().to_onnx()

    report = optimize(model, rules=(PACK,), cost="static", threads=1).report
    print(report.table())
    assert any(name.startswith("k_NormalizeRows_") for name in report.kernels)

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "profile.sqlite")
        optimize(model, rules=(PACK,), profile_db=database, threads=1)  # the kernel runs here, verified, then timed
        found = sqlite3.connect(database).execute("select signature, samples from measurements").fetchall()
    assert any("NormalizeRows" in signature and "0." in samples for signature, samples in found)


if __name__ == "__main__":
    main()
