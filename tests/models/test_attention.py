from itertools import pairwise

import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.kernels.attention import Span
from tunesmith.models.attention import PACKED, refuse_variants
from tunesmith.models.load import attention


def test_packed_documents_equal_each_alone_under_stock_attention(tiny_model):
    torch.manual_seed(0)
    documents = [torch.randint(5, 49000, (n,)) for n in (1, 7, 30, 2)]
    spans = [Span(a, b, a, a) for a, b in pairwise([0, 1, 8, 38, 40])]
    positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
    before = tiny_model.config._attn_implementation
    with torch.no_grad(), attention(tiny_model, PACKED):
        packed = tiny_model(input_ids=torch.cat(documents)[None], position_ids=positions, spans=spans, use_cache=False).logits[
            0
        ]
    assert tiny_model.config._attn_implementation == before
    with torch.no_grad():
        alone = torch.cat([tiny_model(input_ids=d[None], use_cache=False).logits[0] for d in documents])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_what_packed_attention_cannot_do_is_refused():
    refuse_variants({"sliding_window": 64, "softcap": None, "output_attentions": False}, longest=64)
    with pytest.raises(ModelError, match="sliding-window"):
        refuse_variants({"sliding_window": 64}, longest=65)
    with pytest.raises(ModelError, match="softcap"):
        refuse_variants({"softcap": 50.0}, longest=1)
