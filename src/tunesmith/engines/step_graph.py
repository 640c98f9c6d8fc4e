"""A decoding step as one launch: CUDA graphs of the shapes that a batch goes through.

A token of a model of 32 layers is 1,500 launches and more from Python, 10 to 20 ms of the host whatever the card; the weights
of 8B in NF4 are read in two. A CUDA graph has the launches recorded once and started by one call. What it asks for is a step of
fixed shapes on fixed memory without a word to the host: ``engines/token_step.py``.

*A shape* is the rows of a batch and the room of its bins. It is recorded behind two steps that run as always on the stream of
the recording (so that kernels are compiled and loaded, and buffers as large as they get), and replayed until rows leave or a
bin is full: 64 tokens and more. So that few shapes are recorded, rows that have ended stay until half of the batch has, and
fewer than ``PAYS_FROM`` tokens are not worth a recording. Graphs of one call share their memory: the next one is recorded into
that of the last, which is replayed no more.

**Never silently wrong.** A graph knows addresses and numbers, not what they stood for: a length that was a number of the host
when it was recorded stays that number. So the first two tokens of every graph are compared with the two steps before it: the
same inputs have to give the same bits of all logits, the second at the next place. If they do not, or if recording fails, that
is a warning in words, and this call of ``greedy`` goes on step by step.

What is not recorded, and is told as it is: layers that are streamed (a thread and events bring them), and whatever makes the
host wait, which PyTorch is asked to refuse in the second of the two steps: tables in host memory, whose rows the host looks up;
positions whose frequencies depend on the longest row (``dynamic``, ``longrope``); mixtures with fewer pairs of token and expert
than experts, where the host reads which were chosen (``layers/grouped_experts.py``).

Cost: four steps a shape beside the recording, and the memory of one step, which no other part of the program can use meanwhile.
Refused: graphs that outlive a batch. They need caches at fixed places for every shape ever met.

Source: PyTorch's manual, "CUDA Graphs" (warm-up on a side stream, private pools, what may not be captured).

Shape suffixes: B rows of a batch, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.engines.token_step import TokenStep
from tunesmith.layers.nf4 import NF4Weight

logger = logging.getLogger(__name__)

PAYS_FROM = 16  # tokens: two steps before a recording, one for it, two that prove it
AHEAD = 8  # tokens that are written before the host reads them: rows that end write at most seven in vain
PROOF = 2  # steps that are compared: the first cannot tell a number of the host from one of the device
WAITED = "synchronizing CUDA operation"  # PyTorch's words where it refuses to let the host wait
EAGERLY = "decoding goes on step by step, at the speed of the launches"


class StepGraphs:
    """The graphs of one call of ``greedy``, one after another.

    Attributes:
        is_on: whether steps are recorded at all; not from the first one on that could not be.
    """

    def __init__(self, model: PreTrainedModel):
        self.is_on = True
        self._side = torch.cuda.Stream(model.device)
        self._last: torch.cuda.CUDAGraph | None = None
        if any(isinstance(module, NF4Weight) and module.streamed is not None for module in model.modules()):
            self._give_up("layers are streamed", logging.INFO)

    def pays(self, tokens: int) -> bool:
        """Whether a step is recorded for so many tokens."""
        return self.is_on and tokens >= PAYS_FROM

    def recorded(self, step: TokenStep, tokens: int) -> Callable[[], None] | None:
        """What does as ``step`` does, by one launch; None where that does not pay or does not work.

        Args:
            step: at the token that it goes on from; it is left there.
            tokens: that the caller may ask for before rows leave or the cache is laid out anew.

        Raises:
            RuntimeError: the step itself fails, recorded or not.
        """
        if not self.pays(tokens):
            return None
        start = step.state()
        before = torch.cuda.current_stream()
        self._side.wait_stream(before)
        try:
            with torch.cuda.stream(self._side):
                expected = self._warm(step)
        except RuntimeError as error:
            if WAITED not in str(error):
                raise  # of a step as it always was
            return self._give_up("the host has to wait for the device within a decoding step", logging.INFO)
        finally:
            before.wait_stream(self._side)
            step.restore(start)
        graph = torch.cuda.CUDAGraph()
        pool = None if self._last is None else self._last.pool()
        self._side.wait_stream(before)
        try:
            with (
                torch.cuda.stream(self._side),  # a recording that fails leaves its own block without changing back
                torch.cuda.graph(graph, pool=pool, stream=self._side, capture_error_mode="thread_local"),
            ):
                step()
        except RuntimeError as error:  # CUDA's errors and its lack of memory are of this class
            step.restore(start)
            return self._give_up(f"a decoding step cannot be recorded as a CUDA graph: {_first_line(error)}", logging.WARNING)
        before.wait_stream(self._side)
        self._last = graph
        off = _first_difference(step, graph, expected)
        step.restore(start)
        if off is not None:
            return self._give_up(
                f"a CUDA graph of a decoding step of {step.rows} rows gave other logits than the step itself at its token "
                f"{off}; it is not used",
                logging.WARNING,
            )
        return graph.replay

    def _warm(self, step: TokenStep) -> list[Tensor]:
        """Logits of the first steps, run as always: the first loads kernels, and the second may not make the host wait."""
        expected: list[Tensor] = []
        for number in range(PROOF):
            with _without_waits(number > 0):
                step()
            assert step.logits_BV is not None
            expected.append(step.logits_BV)
        return expected

    def _give_up(self, reason: str, level: int) -> None:
        self.is_on = False
        logger.log(level, f"{reason}; {EAGERLY}")


def graphs_of(model: PreTrainedModel) -> StepGraphs | None:
    """For a model on a GPU; None elsewhere, where a launch costs nothing."""
    return StepGraphs(model) if model.device.type == "cuda" else None


def _first_difference(step: TokenStep, graph: torch.cuda.CUDAGraph, expected: list[Tensor]) -> int | None:
    """Which replay, counted from 1, gives other bits than the steps did; None for none."""
    for number, logits_BV in enumerate(expected, start=1):
        graph.replay()
        assert step.logits_BV is not None
        if not torch.equal(step.logits_BV.view(torch.uint8), logits_BV.view(torch.uint8)):
            return number
    return None


@contextmanager
def _without_waits(is_refused: bool) -> Iterator[None]:
    """Within the block PyTorch refuses, if asked to, what makes the host wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error" if is_refused else before)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0][:200]
