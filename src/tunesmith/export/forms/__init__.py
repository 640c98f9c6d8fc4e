"""The forms in which a model is deployed: one file each, and ``table.py``, which names them."""
