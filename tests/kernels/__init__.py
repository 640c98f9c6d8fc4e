"""A package, so that its conftest and its ``test_lora`` do not take the names of those one folder up and beside it."""
