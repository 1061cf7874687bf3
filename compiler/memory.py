"""How much memory a network takes where it runs, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LayerMemory:
    """What one layer takes, in bytes: memory that is its own, memory that it shares with layers before and after, constants; and
    how much of its own memory holds weights that lie packed among the constants."""

    layer: str
    kept: int = 0
    shared: int = 0
    constants: int = 0
    unpacked: int = 0


@dataclass(frozen=True)
class Memory:
    """What a network takes, in bytes: states and buffers, the part of them that is shared, constants; and each layer's part."""

    total: int
    shared: int
    constants: int
    layers: tuple[LayerMemory, ...]

    def text(self) -> str:
        """The table that stands in memory.txt."""
        unpacked = sum(row.unpacked for row in self.layers)
        width = max([5, *(len(row.layer) for row in self.layers)])
        lines = [
            f"states and buffers {self.total:,} bytes, of which {self.shared:,} are shared by buffers that are never live together",
            f"constants          {self.constants:,} bytes",
            "",
            f"{'layer':{width}}  {'own memory':>12}  {'shared':>12}  {'constants':>14}",
        ]
        lines += [f"{row.layer:{width}}  {row.kept:12,}  {row.shared:12,}  {row.constants:14,}" for row in self.layers]
        if unpacked:
            lines[1] += f", weights without their zeros; {unpacked:,} bytes of the memory are for the same in whole rows"
            lines[3] += f"  {'of it weights':>13}"
            lines[4:] = [f"{line}  {row.unpacked:13,}" for line, row in zip(lines[4:], self.layers, strict=True)]
        return "\n".join(lines) + "\n"
