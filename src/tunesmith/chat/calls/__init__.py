"""Tool calls in what a model writes: the forms of the families, and which of them a template uses."""
