"""Render conversations to token ids and loss weights, with the model's own template."""
