"""One new token a row, in shapes that do not change: what decoding does again and again, and what a GPU can record.

A step reads the tokens that it is to go on from out of one tensor and writes those that the model finds likeliest into the same
one; where they go in the cache is a tensor of the device too, moved on by one. So nothing is made on the host from one token to
the next, and as long as no row leaves and no bin of the cache is full, a step is the same work on the same memory: it may be
recorded once (``engines/step_graph.py``). On a CPU, and wherever nothing is recorded, the same function is called.

Whether an answer has ended is for the host, which knows what its grammar and its reader of tool calls say. It reads several
tokens at once where a graph writes them; a check on the device could stop nothing before the host had read it.

Shape suffixes: B rows of a batch (those that have ended too until they leave), D hidden size, V vocabulary.
"""

from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.engines.row_cache import RowCache
from tunesmith.engines.shared_prefix import Prefix
from tunesmith.models.load import decoder


class TokenStep:
    """One token a row, until rows leave or the cache is laid out anew.

    Args:
        model: with ``DECODE`` as its attention.
        cache: with what rows hold before ``ids_B``.
        prefix: shared keys and values by layer, of ``shared`` tokens.
        ids_B: the newest token of every row.

    Attributes:
        ids_B: the token of every row that a call goes on from, and after it the likeliest next ones; int64.
        logits_BV: of the last call, or of the last one that was recorded.
    """

    def __init__(self, model: PreTrainedModel, cache: RowCache, prefix: Prefix, shared: int, ids_B: Tensor):
        self.model, self.ids_B = model, ids_B.clone()
        self._cache, self._prefix, self._shared = cache, prefix, shared
        self._step = cache.take_step()
        self.logits_BV: Tensor | None = None

    def __call__(self) -> None:
        """Keep a token of every row in the cache and find the next."""
        hidden_B1D = decoder(self.model)(
            input_ids=self.ids_B[:, None],
            position_ids=self._step.place_B[:, None] + self._shared,
            past_key_values=self._cache,
            use_cache=True,
            prefix=self._prefix,
            step=self._step,
        ).last_hidden_state
        self.logits_BV = next_logits(self.model, hidden_B1D[:, 0])
        self.ids_B.copy_(self.logits_BV.argmax(-1))
        self._step.advance()

    def state(self) -> tuple[Tensor, Tensor]:
        """What a call changes beside the cache, where it only writes behind what rows hold: to be given to ``restore``."""
        return self.ids_B.clone(), self._step.place_B.clone()

    @property
    def rows(self) -> int:
        """B."""
        return len(self.ids_B)

    def restore(self, state: tuple[Tensor, Tensor]) -> None:
        """Go back to where ``state`` was asked for."""
        for current, kept in zip((self.ids_B, self._step.place_B), state, strict=True):
            current.copy_(kept)
        self._step.forget()


def next_logits(model: PreTrainedModel, hidden_BD: Tensor) -> Tensor:
    """Of the next token of every row, shape (B, V), before what keeps their order.

    The stock model hands its head a strided (B, 1, D); in bf16 that product copies the head once a row: 2 GB. What some
    families do to the logits afterwards (scale, soft-cap) keeps their order.
    """
    head = model.get_output_embeddings()
    assert head is not None
    return head(hidden_BD.contiguous())
