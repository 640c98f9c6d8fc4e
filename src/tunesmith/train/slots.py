"""How the gradients of one pack lie in one run of bytes, and how those of many packs are added up.

Whoever computes a pack leaves its gradients in a slot: in memory that forked processes share (``train/distributed.py``), or in
what is sent to another process (``train/together.py``). They are added in the order of the packs, as a backward pass adds a
gradient to that of the packs before, so a sum has the same bytes wherever its packs were computed.
"""

from collections.abc import Sequence

from torch import Tensor

ALIGNED = 64  # bytes: a product may be rounded otherwise where its operands lie otherwise


class Slots:
    """The layout of the slots of some weights.

    Args:
        parameters: that are trained.

    Attributes:
        size: bytes of a slot.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = list(parameters)
        self.size = sum(aligned(parameter.nbytes) for parameter in self._parameters)

    def views(self, slot_b: Tensor) -> list[Tensor]:
        """The gradients in a slot, one a weight, of its dtype and shape.

        Args:
            slot_b: uint8, of ``size`` bytes at least.
        """
        views, start = [], 0
        for parameter in self._parameters:
            views.append(slot_b[start : start + parameter.nbytes].view(parameter.dtype).view(parameter.shape))
            start += aligned(parameter.nbytes)
        return views

    def fill(self, slot_b: Tensor) -> bytes:
        """Copy what lies in ``.grad`` into a slot.

        Returns:
            A byte a weight: whether it has a gradient.
        """
        for parameter, view in zip(self._parameters, self.views(slot_b), strict=True):
            if parameter.grad is not None:
                view.copy_(parameter.grad)
        return bytes(parameter.grad is not None for parameter in self._parameters)

    def add(self, gradients: list[Tensor | None], slot_b: Tensor, marks: bytes) -> None:
        """Add a pack's gradients to those of the packs before.

        Args:
            gradients: one a weight; None where no pack had one yet.
            marks: what ``fill`` returned.
        """
        for index, (view, mark) in enumerate(zip(self.views(slot_b), marks, strict=True)):
            if mark:
                before = gradients[index]
                gradients[index] = view.clone() if before is None else before.add_(view)


def aligned(nbytes: int) -> int:
    """Bytes up to the next place where a tensor may begin."""
    return -(-nbytes // ALIGNED) * ALIGNED
