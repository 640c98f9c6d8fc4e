"""Checkpoints that come quantised: how they say so, which tensors make a weight, and its dense numbers."""
