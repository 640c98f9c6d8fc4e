"""Adapters that take turns on one base in memory: each is put on, answers, and is taken off again.

Three candidates on one base of 16 GB are 16 GB this way and 48 otherwise, and the base is read once. Nothing is merged, so what
stands after a turn is the base to the byte: the stock modules themselves are put back, and their weights were never written.

Refused: PEFT's several adapters in one model, of which all lie in memory and each costs its products; merging and subtracting,
which leaves a base that rounding has moved.
"""

from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.chat.render import Renderer
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.models.adapter import load_adapted
from tunesmith.models.swap import put_module


class SwappedEngine(InProcessEngine):
    """A base with an adapter on it for as long as the engine is open.

    Args:
        model: the stock base, which others use after it.
        adapter: PEFT directory.
        batch_size: rows decoded together.
    """

    def __init__(self, model: PreTrainedModel, adapter: Path, renderer: Renderer, batch_size: int):
        self._stock = dict(model.named_modules())
        self._adapted = tuple(load_adapted(model, adapter))
        super().__init__(model, renderer, batch_size)

    def close(self) -> None:
        """Take the adapter off, and give freed memory back."""
        for name in self._adapted:
            place = name if name in self._stock else name.rpartition(".")[0]  # of experts the module that holds the stack
            put_module(self.model, place, self._stock[place])
        super().close()
