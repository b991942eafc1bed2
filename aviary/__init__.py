"""The command line: the only place that composes gateway, workers and model registry."""
