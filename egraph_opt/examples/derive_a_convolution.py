"""What a convolution can become: one expression, all built-in rules, and the matrix products in its class."""

from __future__ import annotations

from egraph_opt import EGraph, algebra
from egraph_opt.algebra import tensor, view, weight


def main() -> None:
    x, w = tensor("x", (1, 8, 10, 10)), weight("w", (16, 8, 3, 3))
    y = algebra.convolution(x, w, pads=1)

    # The same in index notation: a sum of products over channels and taps, zero outside the image.
    shape = (1, 16, 10, 10, 8, 3, 3)
    image = view(x, shape, lambda n, f, i, j, c, r, s: (n, c, i + r - 1, j + s - 1))
    filters = view(w, shape, lambda n, f, i, j, c, r, s: (f, c, r, s))
    egraph = EGraph.of(y)
    assert egraph.equal(y, (image * filters).sum(3))

    print(egraph.saturate())
    members = egraph.members(y)
    print(members.operators)
    products = [program for program in members.programs if program.call.operator == "MatMul"]
    # All windows as rows of one matrix (im2col), or one product for all taps and their results shifted and added.
    sizes = {tuple(argument.extents for argument in program.call.arguments) for program in products}
    for left, right in sorted(sizes):
        print("MatMul of", left, "and", right)
    assert ((100, 72), (72, 16)) in sizes
    assert ((100, 8), (8, 144)) in sizes
    shortest = min(products, key=lambda program: len(program.rules))
    print(algebra.text(shortest.term))
    print("by", " > ".join(shortest.rules))


if __name__ == "__main__":
    main()
