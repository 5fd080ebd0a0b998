"""Rules as text to read: equations between terms, what they compute, and under which conditions they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from egraph_opt.egraph.language import Approximate, Rule
from egraph_opt.egraph.pattern import Constant, Each, Fact, Field, Node, Pattern, Variable, parts

_SIGNS = {"Mul": "*", "Add": "+", "+": "+"}


def exactness_text(rule: Rule) -> str:
    """``bitwise``, ``reassociates``, ``real_only`` or ``approximate(bound)``."""
    return f"approximate({rule.exactness.bound:g})" if isinstance(rule.exactness, Approximate) else rule.exactness


def equation(rule: Rule) -> list[str]:
    """The lines of a rule: its equations, the Python functions they use, its conditions.

    ``t.0`` is the first field of what a Python function answers; a line below says which function ``t`` is.
    """
    show = _Printer(rule)
    left = show(rule.left)
    if rule.combine is not None:
        shared = ", ".join(variable.name for variable in rule.sharing)
        lines = [f"all {left}", f"  that share {shared}, together: {_name(rule.combine)}(…) tells what each equals"]
    elif rule.beside is not None and rule.united is not None:
        one, other = rule.united
        lines = [f"{left} = {show(rule.beside)}", f"  makes {one.name} = {other.name}"]
    else:
        lines = [
            line for pair in ((rule.left, rule.right), *rule.more) for line in _sides(show(pair[0]), show(pair[1]))
        ]
    lines += [f"where {label} = {show.called(each)}" for each, label in show.labels.items()]
    conditions = [show.condition(condition) for condition in rule.given]
    return lines + ([f"if {' and '.join(conditions)}"] if conditions else [])


def _sides(left: str, right: str) -> list[str]:
    return [f"{left} = {right}"] if len(left) + len(right) < 90 else [left, f"  = {right}"]


class _Printer:
    """Patterns as text. Computed values get letters of their own that no variable of the rule has."""

    def __init__(self, rule: Rule) -> None:
        matched = (rule.left, rule.right, *rule.matched, *(right for _, right in rule.more))
        taken = {part.name for pattern in matched for part in parts(pattern) if isinstance(part, Variable)}
        letters = (letter for letter in "tuvpqrsabcdefgh" if letter not in taken)
        used = {field.call for field in rule.answered}
        self.labels = {each: next(letters, "t") for each in rule.calls if each in used}

    def __call__(self, pattern: Pattern) -> str:
        match pattern:
            case Variable(tensor=Variable(name=name)):
                return f"extents({name})"
            case Variable(_, name):
                return name
            case Constant(_, value):
                return str(value) if isinstance(value, int) else repr(value)
            case Field(_, each, index, _):
                return f"{self.labels[each]}.{index}"
            case Node(_, constructor, arguments):
                return self._node(constructor, arguments)
        return str(pattern)

    def _node(self, constructor: str, arguments: tuple[Pattern, ...]) -> str:
        if constructor in _SIGNS:
            left = self._operand(arguments[0], within=constructor)
            return f"{left} {_SIGNS[constructor]} {self._operand(arguments[1])}"
        match constructor, arguments:
            case "Apply1" | "Apply2", (function, *operands):
                name = function.value if isinstance(function, Constant) else self(function)
                return f"{name}({self._list(operands)})"
            case "Reduce", (operation, tensor, count):
                name = operation.value if isinstance(operation, Constant) else self(operation)
                return f"{name}({self(tensor)}, {self(count)})"
            case "Fill", (Constant(_, value), Constant(_, extents)):
                return f"fill({value}, [{extents}])" if extents else f"fill({value})"
            case "Call", (operator, attributes, chain, extents):
                name = operator.value if isinstance(operator, Constant) else self(operator)
                shown = attributes.value if isinstance(attributes, Constant) else self(attributes)
                return f"{name}{f'[{shown}]' if shown else ''}({self._chain(chain)}): {self(extents)}"
        return f"{constructor.lower()}({self._list(arguments)})"

    def _operand(self, pattern: Pattern, within: str = "") -> str:
        text = self(pattern)
        loose = isinstance(pattern, Node) and pattern.constructor in _SIGNS and pattern.constructor != within
        return f"({text})" if loose else text

    def _chain(self, chain: Pattern) -> str:
        shown = []
        while isinstance(chain, Node) and chain.constructor == "Cons":
            shown.append(self(chain.arguments[0]))
            chain = chain.arguments[1]
        if not isinstance(chain, Node):
            shown.append(f"…{self(chain)}" if shown else self(chain))
        return ", ".join(shown)

    def _list(self, patterns: Iterable[Pattern]) -> str:
        return ", ".join(map(self, patterns))

    def called(self, each: Each) -> str:
        """The call of a Python function."""
        return f"{_name(each.function)}({self._list(each.arguments)})"

    def condition(self, condition: Each | Fact) -> str:
        """A condition of the rule."""
        if isinstance(condition, Fact):
            return f"{condition.variable.name} is {condition.name}"
        return self.called(condition)


def _name(function: Callable[..., object]) -> str:
    """The name of a Python function; of one made inside another, that of the other."""
    parts_of_name = getattr(function, "__qualname__", "function").split(".<locals>")
    return parts_of_name[0].rpartition(".")[2] if parts_of_name[0] else "function"
