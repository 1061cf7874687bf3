"""In which steps the value of a node is looked at: outside the windows of the populations that read it, it need not be computed.

A population runs from its `start` on and before its `stop`. What a sum of weights alone feeds is skipped with it; what somebody
reads later, what is shown, and what sends into later steps is needed at all times.
"""

from __future__ import annotations

from typing import Final

from spikec.ir.graph import Graph
from spikec.ir.ops import Constant, Neuron

#: The steps from the first on and before the second; None is for ever.
Window = tuple[int, int | None]
ALWAYS: Final[Window] = (0, None)


def joined(one: Window, other: Window) -> Window:
    """The shortest window that holds two; of which one may be empty."""
    if one[1] is not None and one[0] >= one[1]:
        return other
    if other[1] is not None and other[0] >= other[1]:
        return one
    last = None if one[1] is None or other[1] is None else max(one[1], other[1])
    return min(one[0], other[0]), last


def needed(graph: Graph, name: str) -> Window:
    """The steps in which somebody looks at what an input or a node without memory gives."""
    node = graph[name]
    if isinstance(node, (Constant, Neuron)) or getattr(node, "delay", None) is not None:
        return ALWAYS
    if not graph.users[name] or any(ref.node == name for _, ref in graph.outputs):
        return ALWAYS
    found: Window | None = None
    for user, index in graph.users[name]:
        ref = user.inputs[index]
        if ref.delay or ref.init is not None or getattr(user, "delay", None) is not None:
            return ALWAYS
        own = (user.start, user.stop) if isinstance(user, Neuron) else needed(graph, user.name)
        found = own if found is None else joined(found, own)
    return found or ALWAYS


def inside(window: Window, step: int) -> bool:
    """Whether a step lies in a window."""
    return step >= window[0] and (window[1] is None or step < window[1])
