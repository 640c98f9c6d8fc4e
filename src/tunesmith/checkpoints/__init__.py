"""Files of weights and tensors: Hugging Face directories, GGUF, and names in one against names in the other; no modules."""
