"""Load a stock model, know its family's facts, and swap our modules in on the instance."""
