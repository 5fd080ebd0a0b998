"""Terms, programs and plans as text to read: index notation, one line a term, a let-list for the whole.

``sum[i2<8](x[i0, i2] * w[i2, i1])`` is a matrix product: ``i0``, ``i1`` … are the iterators of the place where they
stand, a bare ``x`` is read at all of them, and braces hold what a kernel computes into memory for a library call.
"""

from __future__ import annotations

from collections.abc import Mapping

from egraph_opt.ir.expr import Extents
from egraph_opt.ir.maps import IndexMap
from egraph_opt.ir.program import Plan, Program, Step
from egraph_opt.ir.terms import Apply, Buffer, Call, Compute, Fill, Read, Reduce, Reshape, Softmax, Source, Tensor, View

_SIGNS = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_ATOM = 3


def extents_text(extents: Extents) -> str:
    """``4×8``; ``scalar`` for none."""
    return "×".join(map(str, extents)) or "scalar"


def term_text(term: Tensor | Buffer) -> str:
    """One line of index notation."""
    return _shown(term)[0]


def _shown(term: Tensor | Buffer) -> tuple[str, int]:
    """Text and how tightly it binds."""
    match term:
        case Read(buffer):
            return _shown(buffer)
        case Source(name):
            return name, _ATOM
        case View(inner, index):
            return f"{_tight(inner, _ATOM)}[{index_text(index)}]", _ATOM
        case Reduce(operation, inner, count):
            return f"{operation}{_over(inner.extents, count)}({term_text(inner)})", _ATOM
        case Softmax(inner, count):
            return f"softmax{_over(inner.extents, count)}({term_text(inner)})", _ATOM
        case Fill(value):
            return (str(value), _ATOM) if value.denominator == 1 and value >= 0 else (f"({value})", _ATOM)
        case Apply(function, (left, right)) if function in _SIGNS:
            sign, level = _SIGNS[function]
            # The right operand of - and / needs its own parentheses.
            return f"{_tight(left, level)} {sign} {_tight(right, level + (sign in '-/'))}", level
        case Apply(function, arguments):
            return f"{function}({', '.join(map(term_text, arguments))})", _ATOM
        case Call(operator, attributes, arguments):
            shown = f"[{attributes.replace(';', ' ')}]" if attributes else ""
            return f"{operator}{shown}({', '.join(map(term_text, arguments))})", _ATOM
        case Compute(Read(buffer)):
            return _shown(buffer)
        case Compute(inner):
            return f"{{{term_text(inner)}}}", _ATOM
        case Reshape(inner, extents):
            return f"({term_text(inner)} as {extents_text(extents)})", _ATOM


def _tight(term: Tensor | Buffer, level: int) -> str:
    text, own = _shown(term)
    return text if own >= level else f"({text})"


def _over(extents: Extents, count: int) -> str:
    first = len(extents) - count
    return f"[{', '.join(f'i{first + i}<{extent}' for i, extent in enumerate(extents[first:]))}]"


def index_text(index: IndexMap) -> str:
    """What stands in the brackets of a view."""
    where = f" where {', '.join(f'{guard.text} = 0' for guard in index.guards)}" if index.guards else ""
    other = f" else {index.fill:g}" if index.fill != 0.0 else ""
    return ", ".join(e.text for e in index.indices) + where + other


def program_text(program: Program) -> str:
    """The sources, a line for every definition, and what is returned."""
    return _let_list(
        [*program.inputs, *_constants(program)],
        [(name, term.extents, term_text(term), "") for name, term in program.definitions],
        ", ".join(program.outputs),
    )


def _constants(program: Program) -> list[Source]:
    known = {source.name for source in program.inputs}
    return [Source(name, value.shape, True) for name, value in program.constants.items() if name not in known]


def plan_text(plan: Plan, costs: Mapping[str, str] | None = None) -> str:
    """The steps of a plan as a let-list, each with its cost where ``costs`` gives one by step name."""
    constants = [Source(name, value.shape, True) for name, value in plan.constants.items()]
    known = {source.name for source in constants}
    steps = [(step.name, step.extents, step_text(step), (costs or {}).get(step.name, "")) for step in plan.steps]
    returned = ", ".join(name if name == buffer else f"{name} = {buffer}" for name, buffer in plan.outputs.items())
    return _let_list([*(s for s in plan.inputs if s.name not in known), *constants], steps, returned)


def step_text(step: Step) -> str:
    """What a step does: a library call, a reshape, or the body of a kernel."""
    return f"kernel {term_text(step.buffer.tensor)}" if isinstance(step.buffer, Compute) else term_text(step.buffer)


def _let_list(sources: list[Source], lines: list[tuple[str, Extents, str, str]], returned: str) -> str:
    rows = [(f"{s.name}: {extents_text(s.extents)}{' weight' if s.constant else ''}", "", "") for s in sources]
    rows += [(f"{name}: {extents_text(extents)}", f" = {text}", cost) for name, extents, text, cost in lines]
    longest = max(
        (len(head) + len(text) for head, text, cost in rows if cost and len(head) + len(text) < 90), default=0
    )
    shown = [
        f"let {head}{text}" + (f"{' ' * (longest - len(head) - len(text))}  # {cost}" if cost else "")
        for head, text, cost in rows
    ]
    return "\n".join([*shown, f"return {returned}"])
