"""Hand-written neurons: element-wise code around a state becomes a neuron program.

Cells that are element-wise are gathered into regions: what hangs together through a state first, then what only reads one
region, then other element-wise code that no single IR operation expresses. A region is convex: nothing outside stands between
two of its members in the same step, so that it can run as one program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import networkx as nx

from spikec.frontend.tracing.fold import Cell, Read
from spikec.frontend.tracing.values import StepCount

SIMPLE = frozenset({"+", "-", "*", "/", "neg"})


def clean_leaf(cell: Cell) -> bool:
    """Whether a neuron module gets back exactly the state that it left a step ago."""
    leaf, variables = cell.op.attrs["leaf"], cell.op.attrs["variables"]
    count = len(leaf.program.inputs)
    for name, read in zip(leaf.program.state_names, cell.reads[count:], strict=True):
        own = isinstance(read, Read) and read.cell is cell and read.delay == 1 and read.port == variables.index(name)
        if not own:
            return False
    return True


def simple(cell: Cell, shape: Callable[[Cell, int], tuple[int, ...]]) -> bool:
    """Whether an element-wise cell is an Add or a Scale of the IR."""
    if cell.op.kind != "ew" or cell.op.attrs["fn"] not in SIMPLE or cell.op.outputs[0].boolean:
        return False
    if any(isinstance(read, StepCount) for read in cell.reads):
        return False
    fn = cell.op.attrs["fn"]
    reads = list(cell.cells)
    if fn == "neg":
        return True
    if len(reads) == 2:
        return fn in ("+", "-") and all(shape(read.cell, read.port) == shape(cell, 0) for read in reads)
    if fn == "/":
        return False  # a division is not a product with the reciprocal, to the last bit
    return shape(reads[0].cell, reads[0].port) == shape(cell, 0)


def find_regions(cells: list[Cell], returned: set[Cell], shape: Callable[[Cell, int], tuple[int, ...]]) -> list[list[Cell]]:
    """The regions, each a list of cells in order. Cells that are an Add or a Scale by themselves are in none."""
    return _Finder(cells, returned, shape).run()


class _Finder:
    def __init__(self, cells: list[Cell], returned: set[Cell], shape: Callable[[Cell, int], tuple[int, ...]]) -> None:
        self.cells, self.returned, self.shape = cells, returned, shape
        self.position = {cell: i for i, cell in enumerate(cells)}
        self.region: dict[Cell, int] = {}
        self.members: list[list[Cell]] = []
        self.users: dict[Cell, list[Cell]] = {cell: [] for cell in cells}
        for cell in cells:
            for read in cell.cells:
                self.users.setdefault(read.cell, []).append(cell)
        self.candidates = [c for c in cells if c.op.kind == "ew" or (c.op.kind == "leaf" and not clean_leaf(c))]

    def run(self) -> list[list[Cell]]:
        inside = set(self.candidates)
        graph = nx.DiGraph()
        graph.add_nodes_from(self.candidates)
        for cell in self.candidates:
            for read in cell.cells:
                if read.cell in inside and read.delay <= 1:
                    graph.add_edge(read.cell, cell)
        cycles = [c for c in nx.strongly_connected_components(graph) if len(c) > 1 or graph.has_edge(*(2 * tuple(c)))]
        for component in sorted(cycles, key=lambda c: min(self.position[cell] for cell in c)):
            for group in self._convex(component):
                self._new(group)
        for cell in self.candidates:
            if cell not in self.region and not simple(cell, self.shape):
                self._place(cell)
        self._merge()
        return [sorted(group, key=self.position.__getitem__) for group in self.members if group]

    def _merge(self) -> None:
        """A region that only one other region of the same module reads becomes part of it: a synapse's filter, say."""
        for number in range(len(self.members)):
            group = self.members[number]
            if not group or any(cell in self.returned for cell in group):
                continue
            readers = {self.region.get(user, -1) for cell in group for user in self.users[cell] if self.region.get(user) != number}
            goal = next(iter(readers), -1)
            if len(readers) != 1 or goal < 0:
                continue
            other = self.members[goal]
            delays = {r.delay for cell in other for r in cell.cells if self.region.get(r.cell) == number}
            fits = self.shape(group[0], 0) == self.shape(other[0], 0) and group[0].op.path == other[0].op.path
            if fits and delays <= {0, 1} and not any(self._depends(r.cell, goal) for c in group for r in c.cells if r.delay == 0):
                for cell in group:
                    self._join(cell, goal)
                self.members[number] = []

    def _new(self, group: Iterable[Cell]) -> int:
        number = len(self.members)
        self.members.append(list(group))
        for cell in self.members[-1]:
            self.region[cell] = number
        return number

    def _convex(self, component: set[Cell]) -> list[list[Cell]]:
        """Split by how often a same-step path has left the component, or changed its shape, before it reaches a cell."""
        depth: dict[Cell, int] = {}
        outside: dict[Cell, int] = {}
        for cell in self.cells:
            best = 0
            for read in cell.cells:
                if read.delay:
                    continue
                if read.cell in component:
                    differs = self.shape(read.cell, read.port) != self.shape(cell, 0)
                    best = max(best, depth[read.cell] + (cell not in component or differs))
                else:
                    best = max(best, outside.get(read.cell, 0))
            if cell in component:
                depth[cell] = best
            else:
                outside[cell] = best
        groups: dict[tuple[int, tuple[int, ...]], list[Cell]] = {}
        for cell in sorted(component, key=self.position.__getitem__):
            groups.setdefault((depth[cell], self.shape(cell, 0)), []).append(cell)
        return list(groups.values())

    def _only_source(self, cell: Cell) -> int | None:
        """The one region from which all operands come, through simple cells at most."""
        found: set[int | None] = set()
        for read in cell.cells:
            if read.delay or self.shape(read.cell, read.port) != self.shape(cell, 0):
                return None
            if read.cell in self.region:
                found.add(self.region[read.cell])
            elif read.cell.op.kind == "ew":
                found.add(self._only_source(read.cell))
            else:
                return None
        return found.pop() if len(found) == 1 else None

    def _place(self, cell: Cell) -> None:
        source = self._only_source(cell)
        if source is not None:
            self._absorb(cell, source)
            return
        for read in cell.cells:
            number = self.region.get(read.cell)
            if (
                number is not None
                and read.delay == 0
                and self.shape(read.cell, read.port) == self.shape(cell, 0) == self.shape(self.members[number][0], 0)
            ):
                others = [r.cell for r in cell.cells if r.delay == 0 and self.region.get(r.cell) != number]
                if not any(self._depends(other, number) for other in others) and not self._feeds(cell, number):
                    self._join(cell, number)
                    return
        number = self._new([cell])
        self._pull(cell, number)

    def _absorb(self, cell: Cell, number: int) -> None:
        for read in cell.cells:
            if read.cell not in self.region:
                self._absorb(read.cell, number)
        self._join(cell, number)

    def _join(self, cell: Cell, number: int) -> None:
        self.region[cell] = number
        self.members[number].append(cell)

    def _pull(self, cell: Cell, number: int) -> None:
        """Take along simple cells that nothing else reads."""
        for read in list(cell.cells):
            inner = read.cell
            alone = inner in self.position and inner not in self.region and set(self.users[inner]) == {cell}
            if alone and read.delay == 0 and inner.op.kind == "ew" and self.shape(inner, 0) == self.shape(cell, 0):
                self._join(inner, number)
                self._pull(inner, number)

    def _depends(self, cell: Cell, number: int) -> bool:
        """Whether a cell reads a region in the same step, over any path."""
        seen: set[Cell] = set()
        stack = [cell]
        while stack:
            top = stack.pop()
            if self.region.get(top) == number:
                return True
            if top not in seen:
                seen.add(top)
                stack += [read.cell for read in top.cells if read.delay == 0]
        return False

    def _feeds(self, cell: Cell, number: int) -> bool:
        """Whether a member of the region reads this cell in the same step through something outside."""
        return any(
            read.delay == 0 and read.cell is not cell and self.region.get(read.cell) != number and self._reaches(read.cell, cell)
            for member in self.members[number]
            for read in member.cells
        )

    def _reaches(self, cell: Cell, goal: Cell) -> bool:
        seen: set[Cell] = set()
        stack = [cell]
        while stack:
            top = stack.pop()
            if top is goal:
                return True
            if top not in seen:
                seen.add(top)
                stack += [read.cell for read in top.cells if read.delay == 0]
        return False
