"""A progress line on stderr, for anything over a second, when a person is watching."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, TextIO

WIDTH: Final = 24
#: Nothing is drawn before so many seconds have passed, nor more often than this.
PATIENCE: Final = 1.0
INTERVAL: Final = 0.1


class Bar:
    """Called with (done, total); draws `label [####....] 42 %`, and takes it away again when the work is done.

    unit: what is counted, where a person wants the numbers as well: `label [####....] 42 % (1,260 of 3,000 steps)`.
    """

    def __init__(self, label: str, stream: TextIO | None = None, unit: str = "") -> None:
        self.label = label
        self.unit = unit
        self.stream = sys.stderr if stream is None else stream
        self.watching = self.stream.isatty()
        self.begin = time.monotonic()
        self.last = 0.0
        self.drawn = 0

    def __call__(self, done: int, total: int) -> None:
        """Draw, unless it is too early or too soon again."""
        now = time.monotonic()
        if not self.watching or now - self.begin < PATIENCE or now - self.last < INTERVAL:
            return
        self.last = now
        share = min(done / total, 1.0) if total > 0 else 0.0
        full = round(share * WIDTH)
        counted = f" ({done:,} of {total:,} {self.unit})" if self.unit else ""
        self._write(f"{self.label} [{'#' * full}{'.' * (WIDTH - full)}] {share:4.0%}{counted} {now - self.begin:.0f} s")

    def _write(self, text: str) -> None:
        self.stream.write("\r" + text.ljust(self.drawn))
        self.stream.flush()
        self.drawn = len(text)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.drawn:
            self._write("")
            self.stream.write("\r")
            self.stream.flush()
