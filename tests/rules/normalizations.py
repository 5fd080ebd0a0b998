"""A program for every rule about normalizations: what the frontends write for them, on several layouts."""

from collections.abc import Callable
from fractions import Fraction

from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir import normalization as norm
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Source, Tensor, View, add, mul
from tests.rules.operators import program

EPSILON = 2.0**-10
Parameter = Callable[[str, tuple[int, ...]], Tensor]


def _with_parameters(x: Source, body: Callable[[Tensor, Parameter], Tensor]) -> Program:
    sources: list[Source] = [x]

    def parameter(name: str, axes: tuple[int, ...]) -> Tensor:
        extents = tuple(x.extents[axis] for axis in axes)
        sources.append(Source(name, extents, constant=True))
        places = [ex.iterator(axis) for axis in axes]
        return View(Read(sources[-1]), maps.index_map(extents, x.extents, places))

    term = body(Read(x), parameter)
    return program(sources, term)


def layer(extents: tuple[int, ...], axes: tuple[int, ...], told: tuple[int, ...], *, shifted: bool = True) -> Program:
    """Standardization over ``axes``, scale and bias over ``told``."""

    def body(x: Tensor, parameter: Parameter) -> Tensor:
        scaled = mul(norm.standardized(x, axes, EPSILON), parameter("scale", told))
        return add(scaled, parameter("bias", told)) if shifted else scaled

    return _with_parameters(Source("x", extents), body)


def root_mean_square(extents: tuple[int, ...], axes: tuple[int, ...], *, first: bool) -> Program:
    def body(x: Tensor, parameter: Parameter) -> Tensor:
        plain = norm.root_mean_square_scaled(x, axes, EPSILON)
        scale = parameter("scale", axes)
        return mul(scale, plain) if first else mul(plain, scale)

    return _with_parameters(Source("x", extents), body)


def local_response(size: int) -> Program:
    def body(x: Tensor, parameter: Parameter) -> Tensor:
        places = [ex.iterator(axis) for axis in range(4)]
        places[1] = ex.iterator(1) + ex.iterator(4) - (size - 1) // 2
        window = View(mul(x, x), maps.index_map(x.extents, (*x.extents, size), places))
        scaled = mul(Reduce("sum", window, 1), Fill(Fraction(1, 64) / size, x.extents))
        base = add(scaled, Fill(Fraction(3, 2), x.extents))
        return Apply("div", (x, Apply("pow", (base, Fill(Fraction(3, 4), x.extents)))))

    return _with_parameters(Source("x", (2, 5, 3, 1)), body)


PROGRAMS: dict[str, list[Program]] = {
    "layer-normalization": [
        layer((2, 3, 4), (2,), (2,)),
        layer((2, 3, 4), (1, 2), (1, 2)),
        layer((1, 3, 2, 4), (1,), (1,)),
        layer((2, 1, 4), (2,), (2,)),
    ],
    "layer-normalization-unshifted": [layer((2, 3, 4), (2,), (2,), shifted=False)],
    "standardization": [layer((2, 3, 4), (1,), (1,))],
    "standardization-of-rows": [layer((2, 3, 4), (0, 2), (1,))],
    "instance-normalization": [
        layer((2, 3, 4, 5), (2, 3), (1,)),
        layer((2, 3, 4), (0,), (2,)),
        layer((2, 3, 4, 2), (2,), (0, 3)),
    ],
    "rms-normalization": [root_mean_square((2, 3, 4), (2,), first=False)],
    "rms-normalization-scale-first": [root_mean_square((2, 3, 4), (1, 2), first=True)],
    "local-response-normalization": [local_response(3), local_response(4), local_response(7)],
}

# Terms that look alike and are something else.
STRANGERS: dict[str, Program] = {}


def _stranger(change: Callable[[Tensor, Tensor], Tensor]) -> Program:
    def body(x: Tensor, parameter: Parameter) -> Tensor:
        return change(x, parameter("scale", (2,)))

    return _with_parameters(Source("x", (2, 3, 3)), body)


def _spread_elsewhere(x: Tensor, scale: Tensor) -> Tensor:
    """The statistics of the rows spread over the columns."""
    mean = norm.mean(x, (2,))
    turned = View(mean, maps.index_map(mean.extents, x.extents, [ex.iterator(0), ex.iterator(2), ex.Expr(0)]))
    centered = Apply("sub", (x, turned))
    root = norm.deviation(norm.mean(mul(centered, centered), (2,)), EPSILON)
    turned = View(root, maps.index_map(root.extents, x.extents, [ex.iterator(0), ex.iterator(2), ex.Expr(0)]))
    return mul(Apply("div", (centered, turned)), scale)


def _other_count(x: Tensor, scale: Tensor) -> Tensor:
    """The sum times another number than one over the count."""
    total = norm.reduced(x, "sum", (2,))
    mean = mul(total, Fill(Fraction(1, 4), total.extents))
    centered = Apply("sub", (x, norm.spread(mean, x.extents)))
    square = norm.reduced(mul(centered, centered), "sum", (2,))
    root = norm.deviation(mul(square, Fill(Fraction(1, 4), square.extents)), EPSILON)
    return mul(Apply("div", (centered, norm.spread(root, x.extents))), scale)


STRANGERS["spread elsewhere"] = _stranger(_spread_elsewhere)
STRANGERS["another count"] = _stranger(_other_count)
