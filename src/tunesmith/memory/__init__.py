"""Memory is a dial: where the frozen weights of a training lie, and what it takes."""
