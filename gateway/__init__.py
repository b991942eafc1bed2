"""HTTP in, server-sent events out: the OpenAI-compatible front of the pool.

Never imports `workers` or torch; Ray only in `pool_client`. What it shares with workers is in `model_registry`.
"""
