"""OpenAI's wire format: bytes to validated requests, replies to JSON. Knows no model, worker or HTTP framework."""
