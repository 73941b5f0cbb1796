"""What generates responses: vLLM, or a script for tests."""
