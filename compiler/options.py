"""Whether an option's value is of the type that its field declares."""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args, get_origin


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: classes, unions and tuples of them. True and False are no numbers; a whole number is a real."""
    inner = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(fits(value, one) for one in inner)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = (inner[0],) * len(value) if ... in inner else inner
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
