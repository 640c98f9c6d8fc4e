"""Rows: read and check them, split them, pack them. Imports no torch."""
