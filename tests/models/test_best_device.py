import pytest
import torch

from tunesmith.models.device import best_device


@pytest.fixture
def switch():
    """PyTorch's for cuBLAS, as a process finds it."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_bf16_reduced_precision_reduction, switch.allow_fp16_reduced_precision_reduction
    switch.allow_bf16_reduced_precision_reduction = switch.allow_fp16_reduced_precision_reduction = True
    yield switch
    switch.allow_bf16_reduced_precision_reduction, switch.allow_fp16_reduced_precision_reduction = before


@pytest.mark.parametrize("has_gpu", [False, True])
def test_products_of_a_gpu_add_up_in_fp32(has_gpu, switch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert best_device().type == ("cuda" if has_gpu else "cpu")
    assert switch.allow_bf16_reduced_precision_reduction == switch.allow_fp16_reduced_precision_reduction == (not has_gpu)
