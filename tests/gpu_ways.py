"""The ways that models take on a GPU, taken on a CPU: what kernels are asked for, without the kernels."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.engines import score, shared_prefix
from tunesmith.kernels import attention


def varlen_attn(q, k, v, queries, keys, *_, scale, window_size, enable_gqa=True):
    """``torch.nn.attention.varlen.varlen_attn`` as its manual says it: the last query sees the last key."""
    assert int(queries[-1]) == len(q) and int(keys[-1]) == len(k) and window_size[1] == 0
    outs = []
    parts = (x.tensor_split(borders[1:-1].tolist()) for x, borders in ((q, queries), (k, keys), (v, keys)))
    for q_LHK, k_nGK, v_nGK in zip(*parts, strict=True):
        behind = torch.arange(len(k_nGK) - len(q_LHK), len(k_nGK))[:, None] - torch.arange(len(k_nGK))
        sees = (behind >= 0) & ((behind <= window_size[0]) | (window_size[0] < 0))
        heads = [x.transpose(0, 1) for x in (q_LHK, k_nGK, v_nGK)]
        outs.append(scaled_dot_product_attention(*heads, attn_mask=sees, scale=scale, enable_gqa=True).transpose(0, 1))
    return torch.cat(outs)


def as_on_a_gpu(monkeypatch, kernel):
    """Attention that a kernel of the GPU would compute asks for that kernel."""

    def gpu_kernel(_, scoring):
        return kernel if scoring.softcap is None and scoring.sinks_H is None else None

    for module in (attention, shared_prefix, score):
        monkeypatch.setattr(module, "gpu_kernel", gpu_kernel)
    monkeypatch.setitem(vars(attention.on_gpu), "varlen_attn", varlen_attn)  # whose own import takes seconds
