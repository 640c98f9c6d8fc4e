"""Modules that are swapped in on one model instance in place of the stock ones."""
