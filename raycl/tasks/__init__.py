"""Tasks: orders, prompts, data sources, sampling and the scoring of answers."""
