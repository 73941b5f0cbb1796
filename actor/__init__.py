"""The rollout service: leases prompts, generates groups of responses with vLLM, grades them and sends them in."""
