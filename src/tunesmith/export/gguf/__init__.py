"""GGUF of an export: importance matrix, adapter files, single types (``checkpoints/gguf_write`` writes whole files)."""
