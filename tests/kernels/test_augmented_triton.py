"""``[W | scale B]`` of a group in one launch, against one weight and one B after the other."""

import pytest
import torch

from tunesmith.kernels import augmented
from tunesmith.kernels.augmented import Part
from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.kernels.triton.augmented import fill_augmented_


@pytest.mark.parametrize("quantised", [(True, True, True), (False, True, False), (False, False, False)])
@pytest.mark.parametrize(("inputs", "ranks", "spare"), [(64, (4,), 12), (70, (3, 0), 7), (33, (16, 16, 5), 0), (128, (0,), 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_weights_and_columns_stand_in_their_places(inputs, ranks, spare, quantised, dtype, device):
    torch.manual_seed(0)
    parts = []
    for outputs, rank, nf4 in zip((70, 5, 129), ranks, quantised, strict=False):
        q = quantize_nf4(torch.randn(outputs, inputs)).to(device) if nf4 else None
        parts.append(Part(q, torch.randn(outputs, rank, device=device), 0.75))
    rows, columns = sum(len(part.B_OR) for part in parts), inputs + sum(ranks) + spare
    rooms = [torch.full((rows, columns + 3), 7.0, dtype=dtype) for _ in range(2)]
    on_cpu = [Part(None if q is None else q.to("cpu"), B.cpu(), scale) for q, B, scale in parts]
    augmented.fill_augmented_(rooms[0][:, :columns], inputs, on_cpu)
    on_device = rooms[1].to(device)
    fill_augmented_(on_device[:, :columns], inputs, parts)
    assert torch.equal(on_device.cpu(), rooms[0])
