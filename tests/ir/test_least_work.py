"""The least work of a step, against a frugal evaluation of every point that counts what it cannot do without."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from egraph_opt.ir import expr as ex
from egraph_opt.ir import least_work, maps, scalar
from egraph_opt.ir.least_work import LeastWork, Reach, of_call, of_kernel, reach
from egraph_opt.ir.terms import Apply, Call, Fill, Read, Reduce, Softmax, Source
from tests.backends.bodies import CASES, I, bodies, read, spread, view

ZERO_OF = {"mul": (0, 1), "masked": (0, 1), "prelu": (0,)}
NEUTRAL = {"add": 0, "sub": 0, "mul": 1}


class Frugal:
    """Evaluates points in symbols, equal ones once; what is a number beforehand costs nothing."""

    def __init__(self):
        self.values, self.symbols, self.points = {}, {}, set()
        self.multiplications = self.rest = 0.0

    def at(self, term, point):
        key = term, point
        if key not in self.values:
            self.values[key] = self.computed(term, point)
        return self.values[key]

    def symbol(self, *key):
        """A text that stands for a value, and whether it is a new one."""
        new = key not in self.symbols
        return self.symbols.setdefault(key, f"v{len(self.symbols)}"), new

    def computed(self, term, point):
        match term:
            case Read(buffer):
                self.points.add((buffer, point))
                return self.symbol(buffer, point)[0]
            case Fill(value, _):
                return float(value)
            case least_work.View(tensor, index):
                axes = [np.asarray(i) for i in point]
                place = tuple(int(ex.evaluate(e, axes)) for e in index.indices)
                if any(int(ex.evaluate(guard, axes)) for guard in index.guards):
                    return index.fill
                inside = all(0 <= i < extent for i, extent in zip(place, index.source, strict=True))
                return self.at(tensor, place) if inside else index.fill
            case Reduce(operation, tensor, count):
                inner = tensor.extents[len(tensor.extents) - count :]
                found = [self.at(tensor, point + tuple(tap)) for tap in np.ndindex(*inner)]
                unknown = {value for value in found if isinstance(value, str)}
                if not unknown:
                    return 0.5
                name, new = self.symbol(operation, tuple(sorted(map(str, found))))
                self.rest += new * (len(unknown) - 1)
                return name
            case Softmax(tensor, count):
                rank, inner = len(point) - count, tensor.extents[len(tensor.extents) - count :]
                found = tuple(self.at(tensor, point[:rank] + tuple(tap)) for tap in np.ndindex(*inner))
                own = self.at(tensor, point)
                if not any(isinstance(value, str) for value in found):
                    return 0.5
                self.rest += scalar.lookup("exp").cost * (self.symbol("exp", own)[1] and isinstance(own, str))
                return self.symbol("softmax", own, found)[0]
            case Apply(function, arguments):
                return self.applied(function, arguments, point)

    def applied(self, function, arguments, point):
        for position in ZERO_OF.get(function, ()):
            if self.peek(arguments[position], point) == 0:
                return 0.0
        found = [self.at(argument, point) for argument in arguments]
        numbers = [value for value in found if not isinstance(value, str)]
        if len(numbers) == len(found):
            return 0.5
        if function in NEUTRAL and NEUTRAL[function] in numbers:
            return next(value for value in found if isinstance(value, str))
        name, new = self.symbol(function, *found)
        if new and function == "mul":
            self.multiplications += 1
        elif new:
            self.rest += 1 if numbers else scalar.lookup(function).cost
        return name

    def peek(self, term, point):
        """A number that is known without computing anything; None where there is none."""
        found = Frugal().at(term, point)
        return None if isinstance(found, str) else found


def frugal(term):
    found = Frugal()
    for point in np.ndindex(*term.extents):
        found.at(term, point)
    return LeastWork(max(found.multiplications, found.rest), len(found.points))


SMALL = {
    "bias and relu": Apply("relu", (Apply("add", (read("x", 3, 4, 5), spread(read("b", 4, 1), (3, 4, 5)))),)),
    "padded": view(read("x", 4, 5), (6, 7), [I(0) - 1, I(1) - 1]),
    "strided": view(read("x", 9), (5,), [I(0) * 2]),
    "repeated": Apply("exp", (spread(Apply("relu", (read("x", 4, 1),)), (4, 6)),)),
    "product": Reduce(
        "sum",
        Apply("mul", (view(read("a", 3, 4), (3, 5, 4), [I(0), I(2)]), view(read("b", 5, 4), (3, 5, 4), [I(1), I(2)]))),
        1,
    ),
    "softmax": Softmax(read("x", 3, 4), 1),
    "twice": Apply("mul", (Apply("tanh", (read("x", 7),)), Apply("tanh", (read("x", 7),)))),
    "side by side": Apply("add", (view(read("a", 3), (8,), [I(0)]), view(read("b", 5), (8,), [I(0) - 3]))),
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_is_what_a_frugal_evaluation_takes(name):
    assert of_kernel(SMALL[name]) == frugal(SMALL[name])


FEWER = {
    "convolution": Reduce(
        "sum",
        Apply(
            "mul",
            (
                view(read("x", 2, 6), (3, 6, 2, 3), [I(2), I(1) + I(3) - 1]),
                view(read("w", 3, 2, 3), (3, 6, 2, 3), [I(0), I(2), I(3)]),
            ),
        ),
        2,
    ),
    "sliding sums": Reduce("sum", view(read("x", 8), (8, 3), [I(0) + I(1) - 1]), 1),
    "constants": Apply("add", (read("x", 10), Apply("exp", (Fill(Fraction(2), (10,)),)))),
    "sums with constants": Apply("relu", (Apply("add", (view(read("x", 3), (9,), [I(0)]), Fill(Fraction(2), (9,)))),)),
    "division by a number": Apply("div", (read("x", 10), Fill(Fraction(2), (10,)))),
    "sum of equal values": Reduce("sum", spread(read("x", 4, 1), (4, 9)), 1),
    "sums here and there": Apply("exp", (SMALL["side by side"],)),
}


@pytest.mark.parametrize("name", sorted(FEWER))
def test_it_is_no_more_where_less_is_known(name):
    least, true = of_kernel(FEWER[name]), frugal(FEWER[name])
    assert least.instructions <= true.instructions
    assert least.elements_read <= true.elements_read


def test_all_products_of_a_convolution_count():
    assert of_kernel(FEWER["convolution"]).instructions == frugal(FEWER["convolution"]).instructions > 0


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_it_is_never_more_than_a_frugal_evaluation_takes(term):
    least, true = of_kernel(term), frugal(term)
    assert least.instructions <= true.instructions
    assert least.elements_read <= true.elements_read


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_a_view_reaches_is_what_enumeration_finds(name):
    pending = [CASES[name]]
    while pending:
        term = pending.pop()
        pending += [part for part in least_work.children(term) if not isinstance(part, Source)]
        if isinstance(term, least_work.View):
            index, axes = term.map, maps.grid(term.map.result)
            values = [np.broadcast_to(ex.evaluate(e, axes), index.result) for e in index.indices]
            inside = np.ones(index.result, bool)
            for value, extent in zip(values, index.source, strict=True):
                inside &= (value >= 0) & (value < extent)
            for guard in index.guards:
                inside &= np.broadcast_to(ex.evaluate(guard, axes), index.result) == 0
            place = np.ravel_multi_index([np.where(inside, value, 0) for value in values], index.source)
            found = reach(index)
            assert found in (Reach(int(inside.sum()), len(np.unique(place[inside]))), Reach(0, 0))


def test_views_that_are_too_large_to_enumerate_count_nothing(monkeypatch):
    monkeypatch.setattr(least_work, "_ENUMERATED", 8)
    index = view(read("x", 50), (7, 7), [I(0) * 6 + I(1)]).map
    assert least_work.reach.__wrapped__(index) == Reach(0, 0)


@pytest.mark.parametrize(
    ("operator", "attributes", "shapes", "extents", "expected"),
    [
        ("MatMul", "", [(4, 6), (6, 5)], (4, 5), LeastWork(4 * 5 * 6, 24 + 30)),
        ("Gemm", "transA=1", [(6, 4), (6, 5), (5,)], (4, 5), LeastWork(4 * 5 * 6, 24 + 30 + 5)),
        ("Conv", "group=1;pads=1,1", [(1, 2, 8), (3, 2, 3)], (1, 3, 8), LeastWork(2 * 3 * (8 * 3 - 2), 16 + 18)),
        ("Conv", "group=2;strides=3", [(1, 2, 8), (4, 1, 2)], (1, 4, 3), LeastWork(4 * 6, 2 * 6 + 8)),
        ("ConvTranspose", "pads=1,1;strides=2", [(1, 2, 4), (2, 3, 3)], (1, 3, 7), LeastWork(2 * 3 * 10, 18)),
        ("Conv", "dilations=4;pads=4,4", [(1, 2, 3), (5, 2, 3)], (1, 5, 3), LeastWork(2 * 5 * 3, 6 + 10)),
        ("ConvTranspose", "pads=2,2", [(1, 2, 1), (2, 3, 5)], (1, 3, 1), LeastWork(2 * 3, 6)),
        ("MaxPool", "kernel_shape=1;strides=2", [(1, 3, 8)], (1, 3, 4), LeastWork(0, 12)),
        ("Transpose", "perm=1,0", [(4, 5)], (5, 4), LeastWork(0, 20)),
    ],
)
def test_library_calls(operator, attributes, shapes, extents, expected):
    sources = tuple(Source(f"x{i}", shape) for i, shape in enumerate(shapes))
    assert of_call(Call(operator, attributes, sources, extents)) == expected


def test_arguments_that_are_there_twice_are_read_once():
    x = Source("x", (4, 4))
    assert of_call(Call("MatMul", "", (x, x), (4, 4))) == LeastWork(64, 16)
