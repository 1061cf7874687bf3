"""spikec: a hardware-first neuromorphic compiler."""

__version__ = "0.1.0"
