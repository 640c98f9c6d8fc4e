"""Kernels: one file per operation, holding the plain PyTorch reference that is specification, CPU path and test oracle."""
