"""A GGUF file written: converted from a Hugging Face directory, its types chosen as llama.cpp chooses them, quantised."""
