"""What a small function of the judged software comes to for one GPU, told from its source.

Of Python as much as these functions need: comparisons, `and`, `or`, `not`, lists that are put in
order, `if` and `return`. What is not known of the case is UNKNOWN, and a branch that hangs on it is
not taken for either: it cannot be read.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

UNKNOWN: Any = object()
"""The value of what is not known."""


class Undecided(Exception):
    """What the function comes to hangs on something that is not known, or that is not read here."""


class Raised(Exception):
    """The function would raise an exception; its words."""


_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}


class ComputeCapability(tuple[int, int]):
    """A GPU's compute capability as vLLM compares it, (major, minor)."""

    __slots__ = ()

    @property
    def major(self) -> int:
        return self[0]

    @property
    def minor(self) -> int:
        return self[1]


class AssumedCase:
    """One case that functions are asked about: `names` says what a name, or a dotted one, stands
    for; `calls` what a call of that name comes to, given its arguments. A member of a class
    (`Backend.TRITON`) stands for its own name."""

    def __init__(self, names: Mapping[str, Any], calls: Mapping[str, Callable[..., Any]]) -> None:
        self._names = dict(names)
        self._calls = calls

    def returned(self, function: ast.FunctionDef) -> Any:
        """What the function returns. Raises Undecided, or Raised where it would raise."""
        arguments = function.args
        values = arguments.defaults
        try:
            for argument, value in zip(arguments.args[-len(values) :], values, strict=False):
                if values:
                    self._names.setdefault(argument.arg, self._value(value))
            found, value = self._run(function.body)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise Undecided(str(error)) from None
        except RecursionError:
            raise Undecided("an expression that is nested too deep") from None
        return value if found else None

    def _run(self, body: list[ast.stmt]) -> tuple[bool, Any]:
        """(whether one of the statements returned, what)."""
        for statement in body:
            if isinstance(statement, ast.Return):
                value = None if statement.value is None else self._value(statement.value)
                return True, _known(value)
            if isinstance(statement, ast.If):
                test = _known(self._value(statement.test))
                found, value = self._run(statement.body if test else statement.orelse)
                if found:
                    return True, value
            elif isinstance(statement, ast.Assign):
                self._assign(statement)
            elif isinstance(statement, ast.Expr):
                self._value(statement.value)
            elif isinstance(statement, ast.Raise):
                raise Raised(ast.unparse(statement))
            elif not isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.Pass)):
                raise Undecided(ast.unparse(statement)[:80])
        return False, None

    def _assign(self, statement: ast.Assign) -> None:
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                raise Undecided(ast.unparse(statement)[:80])
            self._names[target.id] = self._value(statement.value)

    def _value(self, node: ast.expr) -> Any:
        made = getattr(self, f"_of_{type(node).__name__.lower()}", None)
        return made(node) if made else UNKNOWN

    def _of_constant(self, node: ast.Constant) -> Any:
        return node.value

    def _of_name(self, node: ast.Name) -> Any:
        return self._names.get(node.id, UNKNOWN)

    def _of_attribute(self, node: ast.Attribute) -> Any:
        dotted = ast.unparse(node)
        if dotted in self._names:
            return self._names[dotted]
        value = self._value(node.value)
        if value is not UNKNOWN:
            is_known = isinstance(value, ComputeCapability) and node.attr in ("major", "minor")
            return getattr(value, node.attr) if is_known else UNKNOWN
        owner = node.value
        is_class = isinstance(owner, ast.Name) and owner.id[:1].isupper()
        return node.attr if is_class else UNKNOWN

    def _of_list(self, node: ast.List) -> Any:
        made: list[Any] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                made += _known(self._value(item.value))
            else:
                made.append(self._value(item))
        return _small(made)

    def _of_tuple(self, node: ast.Tuple) -> Any:
        return tuple(_small([self._value(item) for item in node.elts]))

    def _of_ifexp(self, node: ast.IfExp) -> Any:
        return self._value(node.body if _known(self._value(node.test)) else node.orelse)

    def _of_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self._value(node.operand)
        if value is UNKNOWN or not isinstance(node.op, ast.Not):
            return UNKNOWN
        return not value

    def _of_boolop(self, node: ast.BoolOp) -> Any:
        """Decided by one operand where that is enough, whatever the others are."""
        ends = isinstance(node.op, ast.Or)
        value, unknown = None, False
        for operand in node.values:
            value = self._value(operand)
            if value is UNKNOWN:
                unknown = True
            elif bool(value) is ends:
                return value
        return UNKNOWN if unknown else value

    def _of_compare(self, node: ast.Compare) -> Any:
        left = self._value(node.left)
        for compare, right in zip(node.ops, map(self._value, node.comparators), strict=True):
            if left is UNKNOWN or right is UNKNOWN:
                return UNKNOWN
            try:
                if not _COMPARE[type(compare)](left, right):
                    return False
            except TypeError:
                return UNKNOWN
            left = right
        return True

    def _of_binop(self, node: ast.BinOp) -> Any:
        left, right = self._value(node.left), self._value(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
            return _small(left + right)
        return UNKNOWN

    def _of_call(self, node: ast.Call) -> Any:
        owner = self._value(node.func.value) if isinstance(node.func, ast.Attribute) else None
        name: str = getattr(node.func, "attr", "") or getattr(node.func, "id", "")
        arguments = [self._value(a) for a in node.args]
        if UNKNOWN not in arguments:
            if isinstance(owner, list) and name in _REORDER:
                getattr(owner, name)(*arguments)
                _small(owner)
                return None
            if name in self._calls:
                return _small(self._calls[name](*arguments))
        if any(isinstance(value, list) for value in (owner, *arguments)):
            raise Undecided(ast.unparse(node)[:80])  # it may put a list in another order
        return UNKNOWN


_REORDER = ("append", "insert", "remove")


_MOST = 1000  # characters of a text that is made, entries of a list


def _small(value: Any) -> Any:
    """The value, unless it may double in every line of a file that wants it to."""
    if isinstance(value, (str, list, tuple)) and len(value) > _MOST:
        raise Undecided("a value that is too large")
    if isinstance(value, (list, tuple)) and any(map(_holds_more, value)):
        raise Undecided("a value that is nested too deep")
    return value


def _holds_more(item: Any) -> bool:
    """A list, or a tuple that is not flat."""
    flat = isinstance(item, tuple) and not any(isinstance(i, (list, tuple)) for i in item)
    return isinstance(item, (list, tuple)) and not flat


def _known(value: Any) -> Any:
    if value is UNKNOWN:
        raise Undecided("a condition")
    return value
