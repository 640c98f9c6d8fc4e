"""Decide whether to tune at all: pure rules over measured facts."""
