"""Fix-its for a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, choices: Iterable[str], what: str = "choose one of") -> str:
    """A fix-it: the nearest choice if there is one, else all of them."""
    known = list(choices)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"{what} {', '.join(known)}"
