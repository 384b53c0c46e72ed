"""Bad inputs, each with the exit code and parts of the message that it must get; `tests/cli/test_bad_input.py` runs them."""
