"""What runs inside the worker processes of vLLM."""
