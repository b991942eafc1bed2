"""Step plan in, logits out: the engine's models on real hardware. Knows neither requests nor schedules."""
