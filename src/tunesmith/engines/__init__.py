"""Generate text: transformers in process, and llama.cpp in process, behind one small interface."""
