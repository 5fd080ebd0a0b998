"""Wrong rules about terms, each with its correct twin: the equation, its condition, or what it claims is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from egraph_opt.egraph.language import (
    ExtentsVar,
    IntVar,
    MapVar,
    Member,
    Pattern,
    Rule,
    TensorVar,
    TextVar,
    apply,
    approximate,
    becomes,
    cancels,
    each,
    fill,
    holds,
    together,
)
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap

x, y, z = TensorVar("x"), TensorVar("y"), TensorVar("z")
m, n = MapVar("m"), MapVar("n")
f = TextVar("f")
j, k = IntVar("j"), IntVar("k")
e = ExtentsVar("e")

Fields = list[tuple[object, ...]]


def band_of_a_product(right: bool) -> Rule:
    """EINNET: a band that leaves the matrix wraps around, wrong in the entries near the ends."""

    def wrapped(index: IndexMap) -> Fields:
        if index.guards or (right and not index.is_total) or index.fill:
            return []
        inside = [ex.modulo(i, extent, index.result) for i, extent in zip(index.indices, index.source, strict=True)]
        return [(maps.index_map(index.source, index.result, inside),)]

    product = (x.view(m) * y.view(n)).sum(k)
    f = each(wrapped, n)
    return becomes("band", product, (x.view(m) * y.view(f.map(0))).sum(k), exactness="reassociates")


def composed_views(right: bool) -> Rule:
    """PET: right in the middle, wrong near the borders, where the inner view reads outside."""

    def composed(outer: IndexMap, inner: IndexMap) -> Fields:
        if right:
            found = maps.compose(outer, inner)
            return [] if found is None else [(found,)]
        if outer.fill or inner.fill:
            return []
        indices = [ex.substitute(i, outer.indices, outer.result) for i in inner.indices]
        return [(maps.index_map(inner.source, outer.result, indices, outer.guards),)]

    return becomes("composed-views", x.view(m).view(n), x.view(each(composed, n, m).map(0)))


def swapped_transposes(right: bool) -> Rule:
    """Two transposes in the other order."""

    def both(one: IndexMap, other: IndexMap) -> Fields:
        orders = one.permutation, other.permutation
        if orders[0] is None or orders[1] is None or one.source != one.result or other.source != other.result:
            return []
        found = maps.compose(other, one) if right else maps.compose(one, other)
        return [] if found is None else [(found,)]

    return becomes("swapped-transposes", x.view(m).view(n), x.view(each(both, m, n).map(0)))


def view_of_a_function(right: bool) -> Rule:
    """f(0) is not 0 for every f, and a view is 0 outside."""

    def is_total(index: IndexMap) -> bool:
        return index.is_total

    def any_zero(index: IndexMap) -> bool:
        return index.fill == 0.0

    condition = holds(is_total if right else any_zero, m)
    return becomes("view-of-function", apply(f, x.view(m)), apply(f, x).view(m), given=[condition])


def view_of_a_softmax(right: bool) -> Rule:
    """Softmax over the wrong axis: the view moves the last one."""

    def keeps(index: IndexMap, count: int) -> bool:
        order = index.permutation
        if order is None:
            return False
        rank = len(order)
        return not right or set(order[rank - count :]) == set(range(rank - count, rank))

    return becomes("view-of-softmax", x.view(m).softmax(k), x.softmax(k).view(m), given=[holds(keeps, m, k)])


def maximum_of_sums(right: bool) -> Rule:
    """The maximum of sums is not the sum of maxima."""
    if right:
        return becomes("maximum", x.reduce("max", j).reduce("max", k), x.reduce("max", j + k))
    split = x.reduce("max", k) + y.reduce("max", k)
    return becomes("maximum", (x + y).reduce("max", k), split, exactness="real_only")


def relu_of_a_sum(right: bool) -> Rule:
    """ReLU is not linear."""
    if right:
        return becomes("relu", apply("relu", apply("relu", x)), apply("relu", x))
    return becomes("relu", apply("relu", x + y), apply("relu", x) + apply("relu", y), exactness="real_only")


def scaled_maximum(right: bool) -> Rule:
    """A scale leaves a maximum only if it is not negative."""
    scale = apply("abs", z) if right else z
    return becomes(
        "scaled-maximum", apply("max", x * scale, y * scale), apply("max", x, y) * scale, exactness="real_only"
    )


def quotient_of_itself(right: bool) -> Rule:
    """x / x is NaN for zero and infinity."""
    return becomes("quotient", apply("div", x, x), fill(1, x.extents), exactness="real_only" if right else "bitwise")


def product_with_zero(right: bool) -> Rule:
    """x * 0 is NaN for infinity, and -0 for negative numbers."""
    return becomes("zero", x * fill(0, e), fill(0, e), exactness="real_only" if right else "bitwise")


def difference_of_itself(right: bool) -> Rule:
    """x - x is NaN for infinity."""
    zero = fill(0, x.extents)
    return becomes("difference", apply("sub", x, x), zero, exactness="real_only" if right else "reassociates")


def product_of_exponentials(right: bool) -> Rule:
    """exp(x) * exp(y) = exp(x + y) rounds, and overflows, in other places."""
    claim = "real_only" if right else "bitwise"
    return becomes("exponentials", apply("exp", x) * apply("exp", y), apply("exp", x + y), exactness=claim)


def overflowing_exponentials(right: bool) -> Rule:
    """exp(x) * exp(y) = exp(x + y) claimed to be equal but for rounding."""
    claim = "real_only" if right else "reassociates"
    return becomes("overflow", apply("exp", x) * apply("exp", y), apply("exp", x + y), exactness=claim)


def sum_in_another_order(right: bool) -> Rule:
    """Addition does not associate in floating point."""
    return becomes("order", (x + y) + z, x + (y + z), exactness="reassociates" if right else "bitwise")


def mean_of_a_product(right: bool) -> Rule:
    """A sum of products is not the product of sums."""
    if right:
        return becomes("sums", (x + y).sum(k), x.sum(k) + y.sum(k), exactness="reassociates")
    return becomes("sums", (x * y).sum(k), x.sum(k) * y.sum(k), exactness="reassociates")


def cropped_is_the_whole(right: bool) -> Rule:
    """Tensors of which one part is equal need not be equal."""

    def reads_all(index: IndexMap) -> bool:
        return index.is_bijective or not right

    return cancels("cancels", x.view(m), y.view(m), (x, y), given=[holds(reads_all, m)])


def mixed_members(right: bool) -> Rule:
    """The answers of a rule about all products of a tensor go to the wrong members."""

    def turned(members: Sequence[Member]) -> list[Mapping[int, Pattern]]:
        shift = 0 if right else 1
        chosen = [members[(i + shift) % len(members)] for i in range(len(members))]
        return [{i: member["y"] * member["x"] for i, member in enumerate(chosen)}]

    return together("mixed-members", x * y, sharing=x, combine=turned)


def rough_function(right: bool) -> Rule:
    """tanh(x) is near x only for small x; a factor that is nearly 1 is near everywhere."""
    if right:
        return becomes("rough", x * fill(Fraction(1_000_001, 1_000_000), e), x, exactness=approximate(1e-5))
    return becomes("rough", apply("tanh", x), x, exactness=approximate(1e-3))


def broadcast_sum(right: bool) -> Rule:
    """A sum over an axis of extent one more than what is counted."""

    def factor(extents: Extents, count: int) -> Fields:
        total = 1
        for extent in extents[len(extents) - count :]:
            total *= extent
        return [(str(total if right else max(1, total - 1)), extents[: len(extents) - count])]

    c = each(factor, e, k)
    value = TextVar("value")
    scaled = fill(value, c.extents(1)) * fill(c.text(0), c.extents(1))
    return becomes("broadcast-sum", fill(value, e).sum(k), scaled, exactness="reassociates")


TERMS: dict[str, Callable[[bool], Rule]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        band_of_a_product,
        composed_views,
        swapped_transposes,
        view_of_a_function,
        view_of_a_softmax,
        maximum_of_sums,
        relu_of_a_sum,
        scaled_maximum,
        quotient_of_itself,
        product_with_zero,
        difference_of_itself,
        product_of_exponentials,
        overflowing_exponentials,
        sum_in_another_order,
        mean_of_a_product,
        cropped_is_the_whole,
        mixed_members,
        rough_function,
        broadcast_sum,
    )
}
