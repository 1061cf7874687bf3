"""Passes: one a file, a frozen dataclass whose fields are its options. `spikec.pipeline.PASSES` is their table."""
