"""Arguments and attributes of library calls that fit together, drawn around what is already known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from egraph_opt.ir import library
from egraph_opt.ir.expr import Extents
from egraph_opt.testing import strategies

Known = Sequence[Extents | None]


@dataclass(frozen=True)
class Operands:
    """A library call: operator, attributes, extents of its arguments and of its result."""

    operator: str
    attributes: str
    operands: tuple[Extents, ...]
    extents: Extents


@st.composite
def operands(
    draw: st.DrawFn,
    operator: str | None = None,
    attributes: str | None = None,
    known: Known | None = None,
    wanted: Extents | None = None,
) -> Operands:
    """A call of an operator, or of any that takes so many arguments, with the extents of arguments and result that are
    known.

    Raises EgraphOptError, or rejects the draw, where nothing fits.
    """
    name = operator or draw(st.sampled_from(_candidates(known, wanted)))
    given = None if attributes is None else library.parse_attributes(attributes)
    shapes: Known = known if known is not None else [None] * _arguments(draw, name)
    found, drawn = _DRAWERS.get(name, _registered)(draw, name, given, shapes, wanted)
    text = library.format_attributes(**drawn) if attributes is None else attributes
    extents = library.result_extents(name, text, *found)
    assume(min(extents, default=1) >= 1)
    return Operands(name, text, tuple(found), extents)


def _candidates(known: Known | None, wanted: Extents | None) -> list[str]:
    rank = None if wanted is None else len(wanted)
    if known is not None and len(known) == 1:
        return ["Softmax", "Transpose"] if rank in (1, 2) else ["Softmax", "Transpose", "MaxPool"]
    products = ["MatMul"] if rank is None or rank >= 2 else []
    convolutions = ["Conv", "Conv", "ConvTranspose"] if rank is None or rank >= 3 else []
    assume(bool(products or convolutions))
    if known is None:
        return [*convolutions, *products]
    return [*products, *convolutions] if len(known) == 2 else convolutions or ["Gemm"]


def _arguments(draw: st.DrawFn, name: str) -> int:
    least, most = library.lookup(name).arities
    return draw(st.integers(least, min(most, least + 1))) if name == "Concat" else least


Drawer = Callable[
    [st.DrawFn, str, Mapping[str, str] | None, Known, Extents | None], tuple[list[Extents], dict[str, Any]]
]


def _matmul(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    flags = [(given or {}).get(key) == "1" for key in ("transA", "transB")]
    a, b = (None if e is None else (e[::-1] if turned else e) for e, turned in zip(known[:2], flags, strict=True))
    inner = a[-1] if a else b[-2] if b and len(b) > 1 else draw(st.integers(1, 3))
    batch = wanted[:-2] if wanted else () if name == "Gemm" else draw(strategies.extents(most_axes=1))
    assume(wanted is None or len(wanted) >= 2)
    left = a or (*batch, wanted[-2] if wanted else draw(st.integers(1, 4)), inner)
    right = b or (*batch, inner, wanted[-1] if wanted else draw(st.integers(1, 4)))
    found = [e[::-1] if turned else e for e, turned in zip((left, right), flags, strict=True)]
    return [*found, *(known[i] or (right[-1],) for i in range(2, len(known)))], {}


def _conv(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    transposed = name == "ConvTranspose"
    x, w = known[0], known[1]
    listed = {key: library.integers(text) for key, text in (given or {}).items() if key not in ("then", "function")}
    full = x or w or wanted
    rank = len(listed["strides"]) if listed.get("strides") else len(full) - 2 if full else draw(st.integers(1, 2))
    assume(rank >= 1 and (full is None or len(full) == rank + 2))

    def per_axis(key: str, choices: Sequence[int], number: int, default: int) -> tuple[int, ...]:
        if given is not None:
            return listed.get(key) or (default,) * number
        return tuple(draw(st.sampled_from(choices)) for _ in range(number))

    strides, dilations = per_axis("strides", (1, 1, 2), rank, 1), per_axis("dilations", (1, 1, 2), rank, 1)
    kernel = w[2:] if w else tuple(draw(st.sampled_from((1, 2, 3))) for _ in range(rank))
    pads = per_axis("pads", (0, 0, 1), 2 * rank, 0)
    more = per_axis("output_padding", (0,), rank, 0) if transposed else (0,) * rank
    channels, filters = (x or (0, 0))[1], (wanted or (0, 0))[1]
    group = int((given or {}).get("group", 0)) or _groups(draw, x, w, channels, filters, transposed, given)
    per_group = (channels // group if channels else 0) or draw(st.integers(1, 2))
    if w:
        per_group = w[0] // group if transposed else w[1]
    own = (filters // group if filters else 0) or draw(st.integers(1, 2))
    size = x[2:] if x else _sizes(draw, wanted, kernel, strides, dilations, pads, more, transposed)
    image = x or ((wanted or (draw(st.integers(1, 2)),))[0], per_group * group, *size)
    weights = w or ((per_group * group, own, *kernel) if transposed else (own * group, per_group, *kernel))
    biased = [known[i] or (weights[1] * group if transposed else weights[0],) for i in range(2, len(known))]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": pads, "group": group}
    return [image, weights, *biased], {**attributes, **({"output_padding": more} if transposed else {})}


def _groups(
    draw: st.DrawFn,
    x: Extents | None,
    w: Extents | None,
    channels: int,
    filters: int,
    transposed: bool,
    given: Mapping[str, str] | None,
) -> int:
    """A number of groups that divides what is known."""
    if given is not None:
        return 1
    if x and w and not transposed:
        assume(x[1] % w[1] == 0)
        return x[1] // w[1]
    size = gcd(channels, filters, w[0] if w else 0)
    return draw(st.sampled_from([n for n in (1, 1, 2, 3) if size % n == 0]))


def _sizes(
    draw: st.DrawFn,
    wanted: Extents | None,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    more: Sequence[int],
    transposed: bool,
) -> tuple[int, ...]:
    """Extents of an image that give the extents wanted, or any result at all."""
    found = []
    for axis, (k, s, d, m) in enumerate(zip(kernel, strides, dilations, more, strict=True)):
        reach, padded = d * (k - 1) + 1, pads[axis] + pads[axis + len(kernel)]
        if wanted is None:
            found.append(max(1, reach - padded) + draw(st.integers(0, 3)))
        elif transposed:
            total = wanted[2 + axis] + padded - reach - m
            assume(total >= 0 and total % s == 0)
            found.append(total // s + 1)
        else:
            found.append((wanted[2 + axis] - 1) * s + reach - padded)
    assume(min(found) >= 1)
    return tuple(found)


def _pool(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    listed = {key: library.integers(text) for key, text in (given or {}).items() if key != "then"}
    full = known[0] or wanted
    kernel = listed.get("kernel_shape")
    rank = len(kernel) if kernel else len(full) - 2 if full else draw(st.integers(1, 2))
    assume(rank >= 1)
    kernel = kernel or tuple(draw(st.integers(1, 3)) for _ in range(rank))
    strides = listed.get("strides") or ((1,) * rank if given else tuple(draw(st.integers(1, 2)) for _ in range(rank)))
    dilations = listed.get("dilations") or (1,) * rank
    pads = listed.get("pads") or (
        (0,) * (2 * rank)
        if given
        else tuple(draw(st.integers(0, min(1, kernel[i % rank] - 1))) for i in range(2 * rank))
    )
    size = _sizes(draw, wanted, kernel, strides, dilations, pads, (0,) * rank, False)
    lead = wanted[:2] if wanted else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if name == "MaxPool":
        attributes["dilations"] = dilations
    else:
        attributes["count_include_pad"] = 1
    return [known[0] or (*lead, *size)], attributes


def _transpose(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    given_order = library.integers(given["perm"]) if given and "perm" in given else None
    x = known[0]
    if x is None:
        rank = len(given_order) if given_order else None
        result = wanted if wanted is not None else draw(strategies.extents(rank))
        order = given_order or tuple(draw(st.permutations(range(len(result)))))
        assume(len(order) == len(result))
        x = tuple(result[order.index(axis)] for axis in range(len(order)))
    else:
        order = given_order or tuple(draw(st.permutations(range(len(x)))))
    return [x], {"perm": order}


def _softmax(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    x = known[0] or wanted or draw(strategies.extents(draw(st.integers(1, 3))))
    assume(len(x) >= 1)
    return [x], {"axis": draw(st.integers(0, len(x) - 1))}


def _reduction(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    axes = library.integers(given["axes"]) if given and "axes" in given else None
    keep = (given or {}).get("keepdims", "1" if given is not None else "0") == "1"
    x = known[0]
    if x is None:
        rank = len(wanted) + (0 if keep else len(axes or (0,))) if wanted is not None else draw(st.integers(1, 3))
        axes = axes or (draw(st.integers(0, max(0, rank - 1))),)
        rest = iter(wanted if wanted is not None else draw(strategies.extents(rank)))
        x = tuple(draw(st.integers(1, 3)) if i in axes and not keep else next(rest, 1) for i in range(rank))
    assume(len(x) >= 1)
    return [x], {"axes": axes or (draw(st.integers(0, len(x) - 1)),), "keepdims": int(keep)}


def _concat(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    first = next((e for e in known if e is not None), None) or wanted
    first = first or draw(strategies.extents(draw(st.integers(1, 3))))
    axis = int(given["axis"]) if given and "axis" in given else draw(st.integers(0, len(first) - 1))
    assume(-len(first) <= axis < len(first))
    place = axis % len(first)
    found: list[Extents] = []
    for position, extents in enumerate(known):
        size = draw(st.integers(1, 3))
        if wanted is not None and position == len(known) - 1:
            size = wanted[place] - sum(e[place] for e in found)
        found.append(extents or (*first[:place], size, *first[place + 1 :]))
    assume(all(min(e, default=1) >= 1 for e in found))
    return found, {"axis": axis}


def _registered(
    draw: st.DrawFn, name: str, given: Mapping[str, str] | None, known: Known, wanted: Extents | None
) -> tuple[list[Extents], dict[str, Any]]:
    """An operator that users added: extents that are alike now and then, and whatever its shape function accepts."""
    record = library.lookup(name)
    first = next((e for e in known if e is not None), None) or wanted or draw(strategies.extents())
    choices = st.one_of(
        st.just(first), strategies.extents(len(first)), st.just(first[::-1]), st.just(first[-1:]), strategies.extents()
    )
    found = [extents if extents is not None else draw(choices) for extents in known]
    values: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(0, 2),
        "float": st.sampled_from((1.0, 0.5)),
        "string": st.just(""),
        "ints": st.lists(st.integers(0, 2), max_size=2).map(tuple),
        "floats": st.just((1.0,)),
    }
    return found, {key: draw(values[kind]) for key, kind in sorted(record.attributes.items())} if given is None else {}


_DRAWERS: Mapping[str, Drawer] = {
    "MatMul": _matmul,
    "Gemm": _matmul,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "ReduceSum": _reduction,
    "ReduceMax": _reduction,
    "ReduceMin": _reduction,
    "Concat": _concat,
}
