"""The engine: the only place that wires a config to loader, model, evaluators and wrappers."""
