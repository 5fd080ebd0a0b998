"""Kernel bodies of many kinds, for the tests of code generators."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Softmax, Source, View

I = ex.iterator  # noqa: E741


def read(name, *extents):
    return Read(Source(name, tuple(extents)))


def view(term, result, indices, guards=(), fill=0.0):
    return View(term, maps.index_map(term.extents, result, indices, guards, fill))


def spread(term, result):
    return View(term, maps.broadcast(term.extents, result))


def overlap_add(n, p, f):
    rows = view(
        read("q", n * p * p, 16 * f), (n, p, p, 4, 4, f), [(I(0) * p + I(1)) * p + I(2), (I(3) * 4 + I(4)) * f + I(5)]
    )
    r = (n, 2 * p, 2 * p, f, 4, 4)
    a, b = I(1) + 1 - I(4), I(2) + 1 - I(5)
    guards = [ex.modulo(a, 2, r), ex.modulo(b, 2, r)]
    return Reduce("sum", view(rows, r, [I(0), ex.floordiv(a, 2, r), ex.floordiv(b, 2, r), I(4), I(5), I(3)], guards), 2)


def shifted_adds(n, planes):
    r = (n, n, 5, 5)
    h, w = I(0) + I(2) - 2, I(1) + I(3) - 2
    place, tap = h * n + w, I(2) * 5 + I(3)
    q = read("q", 25, n * n) if planes else read("q", n * n, 25)
    taps = view(q, r, [tap, place] if planes else [place, tap], [ex.floordiv(h, n, r), ex.floordiv(w, n, r)])
    return Apply("add", (Reduce("sum", taps, 2), spread(read("b", 1, 1), (n, n))))


def permuted(extents, order):
    return View(read("x", *extents), maps.permute(extents, order))


def tanh_image():
    sums = overlap_add(16, 16, 3)
    return Apply("tanh", (View(sums, maps.permute(sums.extents, (0, 3, 1, 2))),))


def banded_softmax():
    scores, band = (8, 4, 125, 625), (8, 4, 125, 501)
    inner = Softmax(view(read("s", *scores), band, [I(0), I(1), I(2), I(2) + I(3)]), 1)
    return view(inner, scores, [I(0), I(1), I(2), I(3) - I(2)])


def depth_to_space():
    r = (1, 1, 128, 128)
    h, w = I(2) + 2, I(3) + 2
    channel = ex.modulo(h, 4, r) * 4 + ex.modulo(w, 4, r)
    return view(read("x", 1, 16, 33, 33), r, [Expr(0), channel, ex.floordiv(h, 4, r), ex.floordiv(w, 4, r)])


def im2col():
    r = (1024, 108)
    row, column = ex.modulo(ex.floordiv(I(1), 3, r), 3, r), ex.modulo(I(1), 3, r)
    indices = [
        Expr(0),
        ex.floordiv(I(1), 9, r),
        ex.floordiv(I(0), 32, r) + row - 1,
        ex.modulo(I(0), 32, r) + column - 1,
    ]
    return view(read("x", 1, 12, 32, 32), r, indices)


def convolution(c, f, groups, n):
    r = (1, f, n, n, c // groups, 3, 3)
    channel = ex.floordiv(I(1), f // groups, r) * (c // groups) + I(4)
    x = view(read("x", 1, c, n, n), r, [I(0), channel, I(2) + I(5) - 1, I(3) + I(6) - 1])
    return Reduce("sum", Apply("mul", (x, view(read("w", f, c // groups, 3, 3), r, [I(1), I(4), I(5), I(6)]))), 3)


def layer_norm():
    x = read("x", 64, 500)
    inverse = Fill(Fraction(1, 500), (64,))
    centred = Apply("sub", (x, view(Apply("mul", (Reduce("sum", x, 1), inverse)), (64, 500), [I(0)])))
    variance = Apply("mul", (Reduce("sum", Apply("mul", (centred, centred)), 1), inverse))
    return Apply("div", (centred, view(Apply("sqrt", (variance,)), (64, 500), [I(0)])))


def attention():
    r = (2, 20, 24, 8)
    q, k, v = read("q", 2, 20, 8), read("k", 2, 24, 8), read("v", 2, 24, 8)
    scores = Apply("mul", (view(q, r, [I(0), I(1), I(3)]), view(k, r, [I(0), I(2), I(3)])))
    weights = Softmax(Reduce("sum", scores, 1), 1)
    r = (2, 20, 8, 24)
    return Reduce("sum", Apply("mul", (view(weights, r, [I(0), I(1), I(3)]), view(v, r, [I(0), I(3), I(2)]))), 1)


def concat(axis, first, second):
    r = tuple(a + b if i == axis else a for i, (a, b) in enumerate(zip(first, second, strict=True)))
    here = [I(i) for i in range(len(r))]
    there = [e - first[axis] if i == axis else e for i, e in enumerate(here)]
    return Apply("add", (view(read("a", *first), r, here), view(read("b", *second), r, there)))


BIG = (16, 56, 32, 32)
LAST = (16, 32, 32, 56)
CASES = {
    "overlap-add": Apply("relu", (overlap_add(16, 8, 128),)),
    "overlap-add-image": tanh_image(),
    "nhwc": permuted(BIG, (0, 2, 3, 1)),
    "nchw": permuted(LAST, (0, 3, 1, 2)),
    "nhwc-112": permuted((1, 64, 112, 112), (0, 2, 3, 1)),
    "nchw-7": permuted((1, 7, 7, 512), (0, 3, 1, 2)),
    "nhwc-7": permuted((1, 512, 7, 7), (0, 2, 3, 1)),
    "rgb": permuted((1, 3, 30, 31), (0, 2, 3, 1)),
    "shifted-adds-planes": shifted_adds(224, True),
    "shifted-adds-rows": shifted_adds(224, False),
    "prelu-nchw": Apply("prelu", (read("x", *BIG), spread(read("s", 56, 1, 1), BIG))),
    "bias-prelu-nhwc": Apply(
        "prelu", (Apply("add", (read("x", *LAST), spread(read("b", 56), LAST))), spread(read("s", 56), LAST))
    ),
    "residual": Apply("relu", (Apply("add", (read("x", 1, 64, 56, 56), read("y", 1, 64, 56, 56))),)),
    "gelu": Apply("gelu", (read("x", 128, 3072),)),
    "broadcast": Apply("add", (spread(read("x", 64, 1, 56), (64, 56, 56)), spread(read("y", 56, 1), (64, 56, 56)))),
    "depth-to-space": depth_to_space(),
    "im2col": im2col(),
    "pad": view(read("x", 1, 64, 56, 56), (1, 64, 58, 58), [I(0), I(1), I(2) - 1, I(3) - 1]),
    "strided": view(read("x", 1, 64, 112, 112), (1, 64, 56, 56), [I(0), I(1), I(2) * 2, I(3) * 2]),
    "concat-outer": concat(1, (1, 64, 56, 56), (1, 32, 56, 56)),
    "concat-inner": concat(1, (128, 300), (128, 213)),
    "softmax": Softmax(read("x", 512, 501), 1),
    "softmax-band": banded_softmax(),
    "softmax-inner": View(Softmax(read("x", 20, 33, 40), 1), maps.permute((20, 33, 40), (2, 0, 1))),
    "softmax-all": Softmax(read("x", 30, 11, 7), 3),
    "max-pool": Reduce(
        "max",
        view(
            read("x", 1, 64, 112, 112),
            (1, 64, 56, 56, 3, 3),
            [I(0), I(1), I(2) * 2 + I(4) - 1, I(3) * 2 + I(5) - 1],
            fill=-np.inf,
        ),
        2,
    ),
    "global-average": Apply("mul", (Reduce("sum", read("x", 1, 512, 7, 7), 2), Fill(Fraction(1, 49), (1, 512)))),
    "sum-of-all": Reduce("sum", read("x", 100, 33), 2),
    "depthwise": convolution(32, 32, 32, 28),
    "grouped": convolution(32, 64, 4, 14),
    "layer-norm": layer_norm(),
    "attention": attention(),
    "fill": Fill(Fraction(1, 3), (7, 5)),
    "empty": view(read("x", 3), (0, 3), [I(1)]),
}


@st.composite
def bodies(draw):
    extents = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)))
    term = read("x", *extents)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["view", "apply", "reduce", "softmax", "permute", "reshape"]))
        shape = term.extents
        if kind == "view":
            result = tuple(draw(st.lists(st.integers(1, 20), min_size=max(1, len(shape)), max_size=4)))
            indices, guards = [], []
            for _extent in shape:
                e = Expr(draw(st.integers(-3, 4)))
                for i in draw(st.sets(st.integers(0, len(result) - 1), max_size=2)):
                    e = e + I(i) * draw(st.sampled_from([1, 1, 2, 3, -1]))
                divisor = draw(st.sampled_from([1, 1, 1, 2, 3]))
                if divisor > 1 and draw(st.booleans()):
                    guards.append(ex.modulo(e, divisor, result))
                indices.append(ex.floordiv(e, divisor, result))
            term = view(term, result, indices, guards, draw(st.sampled_from([0.0, 0.0, 1.5])))
        elif kind == "apply":
            function = draw(st.sampled_from(["relu", "tanh", "add", "mul", "max"]))
            other = spread(read("y", *(1,) * len(shape)), shape)
            term = Apply(function, (term,) if function in ("relu", "tanh") else (term, other))
        elif kind == "reduce":
            term = Reduce(draw(st.sampled_from(["sum", "max"])), term, draw(st.integers(0, min(2, len(shape)))))
        elif kind == "softmax":
            term = Softmax(term, draw(st.integers(0, len(shape))))
        elif kind == "permute":
            term = View(term, maps.permute(shape, draw(st.permutations(range(len(shape))))))
        else:
            size = int(np.prod(shape))
            first = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
            term = View(term, maps.reshape(shape, (first, size // first)))
    return term
