"""Prompt in, tokens out: the Ray actors that run models, and the manager that keeps them running.

Knows nothing of HTTP and never imports `gateway`. What it shares with the gateway is in `model_registry`.
"""
