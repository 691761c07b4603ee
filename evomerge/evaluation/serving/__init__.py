"""Items answered by a running server instead of a live model; vLLM has its one door here."""
