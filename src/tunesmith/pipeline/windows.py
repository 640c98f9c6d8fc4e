"""Rows beyond a sliding window: what is said of them.

Some layers of some models see no further than a window of tokens. A longer row is trained all the same, and right: the model
was made so. But who relies on what stands further back than the window should know that only the other layers can carry it, or
that none can.
"""

from pathlib import Path

from tunesmith.memory.shape import Shape, read_shape


class Window:
    """The sliding window of a model.

    Args:
        directory: of the model.
    """

    def __init__(self, directory: Path):
        shape = read_shape(directory)
        self._windows = [layer.window for layer in shape.layers] if isinstance(shape, Shape) else []

    def note(self, tokens: int) -> list[str]:
        """What is to be said of a row of so many tokens; nothing where every layer sees all of it."""
        short = [window for window in self._windows if window is not None and window < tokens]
        if not short:
            return []
        count, layers = len(short), len(self._windows)
        others = f"the other {layers - count} do" if count < layers else "what is further back comes through layers alone"
        window = f"longer than the model's sliding window of {min(short):,} tokens"
        return [f"{window}: {count} of {layers} layers see no further, {others}"]
