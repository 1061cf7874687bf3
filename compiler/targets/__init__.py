"""Target files: one TOML file a target."""
