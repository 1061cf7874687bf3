"""The user's cache folder: what spikec makes once per machine and can make again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for everything that spikec caches; it need not exist.

    `SPIKEC_CACHE_DIR` where that is set, else `spikec` under `XDG_CACHE_HOME` (ignored unless absolute, as the XDG
    base directory specification asks), else `~/.cache/spikec`.
    """
    chosen = os.environ.get("SPIKEC_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    return base / "spikec"
