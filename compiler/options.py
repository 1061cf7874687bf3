"""Whether an option's value is of the type that its field declares, and a parameter's of the kind that its function takes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection
from functools import wraps
from numbers import Integral, Real
from reprlib import repr as short
from types import UnionType
from typing import Any, Final, ParamSpec, TypeVar, get_args, get_origin

import numpy as np

from spikec.diagnostics import CompileError

P = ParamSpec("P")
R = TypeVar("R")


def _flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


#: Kind of a parameter -> the words for it, and the test.
KINDS: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "string": ("a string", lambda value: isinstance(value, str)),
    "name": ("a name", lambda value: isinstance(value, str)),
    "strings": (
        "a list of strings",
        lambda value: (
            isinstance(value, Collection) and not isinstance(value, (str, bytes)) and all(isinstance(item, str) for item in value)
        ),
    ),
    "path": ("a path", lambda value: isinstance(value, (str, os.PathLike))),
    "number": ("a number", lambda value: isinstance(value, Real) and not _flag(value)),
    "whole": ("a whole number", lambda value: isinstance(value, Integral) and not _flag(value)),
    "flag": ("True or False", _flag),
    "function": ("a function", callable),
    "class": ("a class", inspect.isclass),
    "none": ("None", lambda value: value is None),
}


def typed(**kinds: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A public function whose parameters are of these kinds (of `KINDS`, several separated by |), or what they are by default.

    Anything else is a CompileError SPK001 that names the parameter, before the function begins.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if name in kinds and value is not signature.parameters[name].default:
                    wanted = [KINDS[kind] for kind in kinds[name].split("|")]
                    if not any(test(value) for _, test in wanted):
                        words = " or ".join(word for word, _ in wanted)
                        raise CompileError("SPK001", f"{name} is {words}, not {short(value)}")
            return function(*args, **kwargs)

        return checked

    return decorate


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
