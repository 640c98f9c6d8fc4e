"""Which weight lies in how many bits: what rounding costs, and what is bought with the bytes there are."""
