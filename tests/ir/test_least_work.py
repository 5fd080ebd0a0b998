"""The least work of a step, against a frugal evaluation of every point that counts what it cannot do without."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from egraph_opt.ir import expr as ex
from egraph_opt.ir import least_work, maps, scalar
from egraph_opt.ir.least_work import LeastWork, Reach, of_call, of_kernel, reach
from egraph_opt.ir.terms import Apply, Call, Fill, Read, Reduce, Softmax, Source
from tests.backends.bodies import CASES, I, bodies, read, spread, view

UNKNOWN = object()
ZERO_OF = {"mul": (0, 1), "masked": (0, 1), "prelu": (0,)}
NEUTRAL = {"add": 0, "sub": 0, "mul": 1}


class Frugal:
    """Evaluates points by themselves, each once; what is known beforehand costs nothing."""

    def __init__(self):
        self.values, self.points = {}, set()
        self.multiplications = self.rest = 0.0

    def at(self, term, point):
        key = term, point
        if key not in self.values:
            self.values[key] = self.computed(term, point)
        return self.values[key]

    def computed(self, term, point):
        match term:
            case Read(buffer):
                self.points.add((buffer, point))
                return UNKNOWN
            case Fill(value, _):
                return value
            case least_work.View(tensor, index):
                axes = [np.asarray(i) for i in point]
                place = tuple(int(ex.evaluate(e, axes)) for e in index.indices)
                if any(int(ex.evaluate(guard, axes)) for guard in index.guards):
                    return index.fill
                inside = all(0 <= i < extent for i, extent in zip(place, index.source, strict=True))
                return self.at(tensor, place) if inside else index.fill
            case Reduce(_, tensor, count):
                inner = tensor.extents[len(tensor.extents) - count :]
                found = [self.at(tensor, point + tuple(tap)) for tap in np.ndindex(*inner)]
                unknown = sum(value is UNKNOWN for value in found)
                self.rest += max(0, unknown - 1)
                return UNKNOWN if unknown else 0
            case Softmax(tensor, count):
                inner = tensor.extents[len(tensor.extents) - count :]
                found = [self.at(tensor, point[: len(point) - count] + tuple(tap)) for tap in np.ndindex(*inner)]
                if found and all(value is not UNKNOWN for value in found):
                    return 1
                self.rest += scalar.lookup("exp").cost * (self.at(tensor, point) is UNKNOWN)
                return UNKNOWN
            case Apply(function, arguments):
                return self.applied(function, arguments, point)

    def applied(self, function, arguments, point):
        for position in ZERO_OF.get(function, ()):
            others = [argument for argument in arguments if not isinstance(argument, Read)]
            if any(self.peek(argument, point) == 0 for argument in others if argument is arguments[position]):
                return 0
        found = [self.at(argument, point) for argument in arguments]
        if all(value is not UNKNOWN for value in found):
            return 1
        if function in NEUTRAL and any(value is not UNKNOWN and value == NEUTRAL[function] for value in found):
            return UNKNOWN
        if function == "mul":
            self.multiplications += 1
        else:
            self.rest += scalar.lookup(function).cost
        return UNKNOWN

    def peek(self, term, point):
        """A value that is known without computing anything; None where that is not so."""
        other = Frugal()
        found = other.at(term, point)
        return None if found is UNKNOWN else found


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
    "windows": Reduce("sum", view(read("x", 8), (8, 3), [I(0) + I(1) - 1]), 1),
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
        ("MaxPool", "kernel_shape=1;strides=2", [(1, 3, 8)], (1, 3, 4), LeastWork(0, 12)),
        ("Transpose", "perm=1,0", [(4, 5)], (5, 4), LeastWork(0, 20)),
    ],
)
def test_library_calls(operator, attributes, shapes, extents, expected):
    sources = tuple(Source(f"x{i}", shape) for i, shape in enumerate(shapes))
    assert of_call(Call(operator, attributes, sources, extents)) == expected
