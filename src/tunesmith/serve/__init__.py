"""One address that speaks OpenAI's language: chat with a base and its adapters, and fine-tuning as jobs.

The front (HTTP, limits, rendering) and the engines (llama.cpp in child processes, or vLLM) meet in ``asking.py``: token ids go
in, pieces of text come out. The web framework is imported here and in ``web/`` alone.
"""
