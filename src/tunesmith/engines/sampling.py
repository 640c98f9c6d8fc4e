"""Sampling from a model's own distribution: the likeliest token of logits with Gumbel noise on them.

The token with the largest sum of its logit and a draw from the standard Gumbel distribution is a draw from the softmax (Gumbel
1954; Maddison, Tarlow and Minka 2014, arXiv 1411.0030, section 2). So sampling is greedy decoding with other logits, and
``decode.greedy`` takes it where it takes a grammar. The noise of an answer follows from a seed, the answer's place among all
and the step; which answers share a batch plays no role.

Shape suffixes: B rows of a batch, V vocabulary.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.engines.score import capped_logits


class Sampling:
    """Temperature 1, nothing cut off.

    Args:
        seed: of all draws.
        softcap: the model's soft cap of its logits; None where it has none.
    """

    def __init__(self, seed: int, softcap: float | None = None):
        self._seed, self._softcap = seed, softcap

    @classmethod
    def of(cls, model: PreTrainedModel, seed: int) -> "Sampling":
        """From a model's own distribution."""
        return cls(seed, vars(model.config.get_text_config()).get("final_logit_softcapping"))

    def start(self, numbers: Sequence[int]) -> "SamplingState":
        """The draws of answers by their places among all."""
        return SamplingState([_generator(self._seed, number) for number in numbers], self._softcap)


class SamplingState:
    """The draws of a batch; the shape of ``engines/grammar.py``'s state."""

    def __init__(self, generators: list[torch.Generator], softcap: float | None):
        self._generators, self._softcap = generators, softcap

    def change(self, logits_BV: Tensor) -> Tensor:
        """The logits (fp64) with the noise of a step on them."""
        logits_BV = capped_logits(logits_BV.double(), self._softcap)
        uniform_BV = torch.stack(
            [torch.rand(logits_BV.shape[1], generator=generator, dtype=torch.float64) for generator in self._generators]
        )
        return logits_BV - torch.log(-torch.log(uniform_BV.clamp_min(1e-300))).to(logits_BV.device)

    def accept(self, tokens: Sequence[int]) -> None:
        """Nothing follows from what was drawn."""

    def keep_rows(self, keep: Sequence[int]) -> None:
        """Forget all rows but ``keep``."""
        self._generators = [self._generators[row] for row in keep]


def _generator(seed: int, number: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
