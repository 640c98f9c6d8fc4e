"""Processes that a launcher started together: on the GPUs of a machine, on several machines, on a CPU for tests.

``variables`` says how this process was launched and needs no torch; they find each other in ``meeting``, and ``group`` is the
connection between them.
"""
