"""What `make bench` and `make bench-all` found: kept in a file network by network, then a table and a plot."""

from __future__ import annotations

import json
import platform
import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARKS = ("<!-- bench -->", "<!-- /bench -->")
OURS = "spikec, C"
#: Where others take a larger share of the core than this, the machine is a busy one, and the table says so.
BUSY = 0.05


@dataclass
class Row:
    """What one contender gave on one network: output spikes that differ from a float simulation's, milliseconds an inference of
    every round, inferences a second of every round by samples at once, peak memory; or why it is left out."""

    title: str
    wrong: int = 0
    spikes: int = 0
    times: list[float] = field(default_factory=list)
    rates: dict[int, list[float]] = field(default_factory=dict)
    megabytes: float = 0.0
    skip: str = ""

    @property
    def ms(self) -> float:
        """Median milliseconds an inference, one at a time."""
        return statistics.median(self.times)

    def best(self) -> tuple[float, int] | None:
        """The most inferences a second, and with how many samples at once."""
        found = [(statistics.median(rates), batch) for batch, rates in self.rates.items() if rates]
        found += [(1e3 / self.ms, 1)] if self.times else []
        return max(found, default=None)


@dataclass
class Network:
    """One network: what it is, everybody's rows, seconds that the emitted folder took to build, bytes of its weights, and what
    share of the core others took before it was measured."""

    what: str
    rows: dict[str, Row] = field(default_factory=dict)
    built: float = 0.0
    weights: int = 0
    taken: float = 0.0


def save(networks: dict[str, Network], path: Path) -> None:
    """Write the file; a run that is cut off loses only the network that it was at."""
    text = json.dumps({"machine": machine(), "networks": {name: asdict(network) for name, network in networks.items()}}, indent=1)
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def load(path: Path) -> dict[str, Network]:
    """What an earlier run on this machine left, or nothing."""
    if not path.exists():
        return {}
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["machine"] != machine():
        return {}
    networks = {}
    for name, network in told["networks"].items():
        rows = {
            title: Row(**{**row, "rates": {int(batch): rates for batch, rates in row["rates"].items()}})
            for title, row in network.pop("rows").items()
        }
        networks[name] = Network(**network, rows=rows)
    return networks


def number(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(networks: dict[str, Network]) -> str:
    """Markdown: milliseconds an inference and, in brackets, times the emitted C; inferences a second in batches; what it is."""
    titles = [OURS, *dict.fromkeys(t for network in networks.values() for t in network.rows if t != OURS)]
    memory = "W1" if "W1" in networks else next(iter(networks))
    wide = [name for name in ("W4",) if name in networks and name != memory]
    heads = [*networks, f"MB, {memory}", *(f"MB, {name}" for name in wide)]
    lines = ["| milliseconds an inference | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for title in titles:
        cells = []
        for network in networks.values():
            row = network.rows.get(title)
            if row is None or not row.times:
                cells.append("–")
            elif title == OURS:
                cells.append(number(row.ms))
            else:
                cells.append(f"{number(row.ms)} ({number(row.ms / network.rows[OURS].ms)}×)")
        for name in (memory, *wide):
            row = networks[name].rows.get(title)
            cells.append(number(row.megabytes) if row is not None and row.megabytes else "–")
        if any(cell != "–" for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    fed = [name for name, network in networks.items() if any(row.rates for row in network.rows.values())]
    if fed:
        lines += ["", "| inferences a second | " + " | ".join(fed) + " |", "|---" * (len(fed) + 1) + "|"]
    for title in titles if fed else ():
        cells = []
        for name in fed:
            row = networks[name].rows.get(title)
            best = row.best() if row is not None else None
            cells.append("–" if best is None else f"{number(best[0])}" + (f" ({best[1]})" if best[1] > 1 else ""))
        if any(cell != "–" for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    told = "; ".join(f"{name}: {network.what}" for name, network in networks.items())
    return "\n".join([*lines, "", f"{told}. {conditions(networks)}"])


def conditions(networks: dict[str, Network]) -> str:
    """How it was measured, for the line under the table."""
    busy = max(network.taken for network in networks.values())
    builds = max(network.built for network in networks.values())
    return (
        f"First table: one core of {machine()}, one sample at a time, medians of interleaved rounds, in brackets how many times as "
        f"long as spikec's C; MB is a process's peak memory. Second table: the best of 1, 16, 64 and 256 samples at once, in "
        f"brackets how many, one core. Building the emitted folder takes at most {builds:.1f} s."
        + (
            f" **Measured on a busy machine (others took up to {100 * busy:.0f} % of the core), in the processor's time, Brian2 in "
            "the wall's: only the ratios count.**"
            if busy > BUSY
            else ""
        )
    )


def machine() -> str:
    """The processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def plot(networks: dict[str, Network], path: Path) -> None:
    """A line for each contender, a mark for each network: how many times as long as the emitted C, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    ratios: dict[str, dict[str, float]] = {}
    for name, network in networks.items():
        for title, row in network.rows.items():
            if row.times and title != OURS:
                ratios.setdefault(title, {})[name] = row.ms / network.rows[OURS].ms
    order = sorted(ratios, key=lambda title: statistics.median(ratios[title].values()))
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(order) + 1.5))
    for place, title in enumerate(order):
        least, most = min(ratios[title].values()), max(ratios[title].values())
        axes.plot([least, most], [place, place], color="0.8", linewidth=3, zorder=1, solid_capstyle="round")
    for (name, network), mark, colour in zip(networks.items(), "osD^vPX*", plt.cm.tab10.colors, strict=False):
        places = [place for place, title in enumerate(order) if name in ratios[title]]
        label = f"{name}: {re.split(', | with | [(]', network.what)[0]}"
        axes.scatter(
            [ratios[order[place]][name] for place in places], places, s=42, marker=mark, color=colour, label=label, zorder=2
        )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.annotate("spikec, C", (1, 0), (3, 4), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize="small")
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}×"))
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("time of one inference, as a multiple of spikec's C (logarithmic)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", ncols=3, fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.55 / figure.get_figheight()))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def write_readme(text: str, path: Path) -> None:
    """Put the table between the marks."""
    page = path.read_text(encoding="utf-8")
    head, rest = page.split(MARKS[0])
    path.write_text(head + MARKS[0] + "\n" + text + "\n" + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")
