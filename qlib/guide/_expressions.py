"""Sums and comparisons written in data files: names, numbers, arithmetic; nothing else runs."""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from qlib.core.records import InvalidSpec

_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_UNARY = {ast.USub: operator.neg, ast.Not: operator.not_}
_CALLS: dict[str, Callable] = {"abs": abs, "min": min, "max": max, "round": round}
_HOLE = re.compile(r"\{((?:[^{}:\"']|\"[^\"]*\"|'[^']*')+)(?::([^{}]*))?\}")


def value(text: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression; ``names`` may hold mappings, read as ``a.b`` or ``a["b"]``.

    Raises:
        InvalidSpec: it is no expression, uses something unknown or missing, or divides by zero.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, names)
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise InvalidSpec(f"The expression {text!r} cannot be computed: {error}.") from None
    except KeyError as error:
        raise InvalidSpec(
            f"The expression {text!r} uses {error}, which is not known here."
        ) from None


def filled(text: str, names: Mapping[str, Any]) -> str:
    """The text with each ``{expression}`` or ``{expression:format}`` replaced by its value.

    Numbers with a fraction are written with one decimal where no format is given.

    Raises:
        InvalidSpec: as `value`, or the format does not fit the value.
    """

    def hole(found: re.Match) -> str:
        got = value(found[1], names)
        form = found[2] or (".1f" if isinstance(got, float) else "")
        try:
            return format(got, form)
        except ValueError as error:
            raise InvalidSpec(f"{found[0]} cannot be written: {error}.") from None

    return _HOLE.sub(hole, text)


def _value(node: ast.AST, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str()):
            return node.value
        case ast.Name(id=name):
            return _item(names, name)
        case ast.Attribute(value=owner, attr=name):
            return _item(_value(owner, names), name)
        case ast.Subscript(value=owner, slice=ast.Constant(value=str() as name)):
            return _item(_value(owner, names), name)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, names), _value(right, names))
        case ast.BoolOp(op=op, values=parts):
            found = [bool(_value(part, names)) for part in parts]
            return all(found) if isinstance(op, ast.And) else any(found)
        case _:
            return _rest(node, names)


def _rest(node: ast.AST, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_value(side, names) for side in (left, *others)]
            pairs = zip(ops, sides, sides[1:], strict=False)
            return all(_BINARY[type(op)](one, two) for op, one, two in pairs)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _CALLS:
            return _CALLS[name](*[_value(part, names) for part in parts])
        case _:
            raise TypeError(f"{ast.unparse(node)!r} is not allowed")


def _item(owner: Any, name: str) -> Any:
    if not isinstance(owner, Mapping):
        raise TypeError(f"{name!r} is asked of a plain value")
    got = owner[name]
    if got is None:
        raise KeyError(name)
    return got
