"""What every layer uses and that knows no model: errors, files, signals, registries of plugins."""
