"""Causal attention over the documents of a pack, some of which share their beginning.

A pack is T tokens: documents one after another, each alone. A block-diagonal mask would have T^2 entries that mostly say
"no"; here every document runs by itself, 64 queries at a time against the keys that they may see. Documents that begin
with the same tokens hold that prefix once: a ``Span`` is a run of queries that sees a prefix elsewhere in the pack, and
itself causally. Short spans that stand side by side and see the same prefix are one block under such a mask, up to 128 tokens:
a block is a dozen operations whatever its size, and eight documents of 30 tokens spent a quarter of a step on them.

On a CPU the stock kernel is slower in bf16 than in fp32. Here scores and values are batched matrix products, one batch
element a key/value head with all its query heads in the rows. Rounding is spent where it is cheap: scores are products
in fp32 (in bf16 they have three digits, and a loss was off by 8.5e-3), probabilities and values are in the dtype of the
query, and the backward pass subtracts the row sums inside the product that makes them: ``dP - D = [dO | -D] [V | 1]^T``,
with D in two parts where the dtype is short, so that the difference is taken in fp32 and rounded once.

Probabilities are kept for the backward pass where documents are short (``KEEP_PROBS_UP_TO`` tokens: 4 to 9 KB a token and
layer at 9 heads) and made again where they are long, so memory stays linear in T.

On a GPU the same spans go to PyTorch's variable-length flash attention; a shared prefix is then gathered before each
span's own keys, which costs its keys once more and no score. Heads wider than 256, fp32 and cards before compute capability
8.0 go to PyTorch's other kernels, document by document, short ones together. What neither knows (soft-capped scores, sinks)
runs block by block there too, in blocks four times as large: slower, the same result.

A sink is one more score of a head that takes part in the softmax and has no value (a learned way to look at nothing). Its
share is left out of the probabilities, and the gradients need no other change: ``D = dO . O`` is still the row sum of
``P dP``, because the sink's own ``dP`` is zero.

Source of the passes: Dao et al. 2022 (FlashAttention, algorithm 4 for the gradient), without its tiling over keys. Sinks:
Agarwal et al. 2025 (arXiv 2508.10925, section 2.2).

Shape suffixes: T tokens, H query heads, G key/value heads, J query heads of each, K head dimension; here: L queries of
a block, Y its rows (L J), n its keys, W any width.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.kernels import triton as on_gpu
from tunesmith.kernels.scratch import Scratch
from tunesmith.kernels.upload import upload

BLOCK = 64  # queries of a block: 256 waste half of the scores of short documents, 32 are too small a product
JOINED = 128  # tokens of the spans of a block, at most, where it has several
GPU_BLOCK = 256  # both on a GPU, whose time goes to launches: the widest scores known (32 heads, 8,192 keys) are 0.3 GB in fp32
GPU_JOINED = 512  # tokens of documents that one call of PyTorch's kernel takes together
KEEP_PROBS_UP_TO = 512  # tokens of a span and its prefix up to which its probabilities are kept
FLASH_WIDTH = 256  # features of the widest head that the flash kernels take


class Span(NamedTuple):
    """Tokens ``start`` to ``end`` of a pack, which see tokens ``prefix_start`` to ``prefix_end`` and themselves causally.

    The prefix comes right before the span in position. Without one both its ends are ``start``.
    """

    start: int
    end: int
    prefix_start: int
    prefix_end: int


class Reach(NamedTuple):
    """Queries ``start`` to ``end`` and the ranges of keys that they see: the last, as long as they are, causally, others whole.

    What it sees stands before it in position, in the order of the ranges.
    """

    start: int
    end: int
    keys: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, span: Span) -> "Reach":
        """Of a span whose keys stand where its queries do."""
        prefix = ((span.prefix_start, span.prefix_end),) if span.prefix_end > span.prefix_start else ()
        return cls(span.start, span.end, (*prefix, (span.start, span.end)))


@dataclass(frozen=True, eq=False)
class ScoreParams:
    """How a layer scores.

    Attributes:
        scale: factor on the scores.
        window: a token sees this many tokens, itself included; None for all.
        softcap: scores become ``softcap * tanh(scores / softcap)``, or None.
        sinks_H: a score of each query head that every query sees beside its keys and that has no value, or None. Frozen:
            it gets no gradient. The factor and the soft-cap do not touch it.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None


class Saved(NamedTuple):
    """What the backward pass needs: inputs by key/value head, the output, and the probabilities of each block or None.

    Without blocks all probabilities are made again.
    """

    q_GTJK: Tensor
    k_GTK: Tensor
    v_GTK: Tensor
    o_GTJK: Tensor
    blocks: tuple[Tensor | None, ...]

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them in a row, as autograd saves them."""
        return *self[:4], *self.blocks

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> "Saved":
        """From what ``tensors`` returned."""
        return cls(tensors[0], tensors[1], tensors[2], tensors[3], tuple(tensors[4:]))


def attention_forward(
    q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, spans: list[Span], scoring: ScoreParams
) -> tuple[Tensor, Saved]:
    """Attention of every span.

    Args:
        q_THK, k_TGK, v_TGK: of one dtype, any strides; H is a multiple of G.
        spans: cover all T tokens.

    Returns:
        Output of shape (T, H, K), and what ``attention_backward`` asks for.
    """
    tokens, heads, width = q_THK.shape
    q_GTJK, k_GTK, v_GTK = by_head(q_THK, k_TGK, v_TGK)
    o_GTJK = torch.empty_like(q_GTJK)
    scaled_GTJK, exact_GTK = _exact(q_GTJK, k_GTK, scoring)
    probs: list[Tensor | None] = []
    blocks = _blocks(spans, scoring, *_sizes(q_GTJK))
    scratch = _scratch(blocks, q_GTJK.device)
    for block in blocks:
        p_GYn = _probabilities(scaled_GTJK, exact_GTK, block, scoring, q_GTJK.dtype, None if block.short else scratch)
        torch.bmm(p_GYn, block.keys(v_GTK), out=block.rows(o_GTJK))
        probs.append(p_GYn if block.short else None)
    o_THK = o_GTJK.transpose(0, 1).reshape(tokens, heads, width)
    return o_THK, Saved(q_GTJK, k_GTK, v_GTK, o_GTJK, tuple(probs))


def by_head(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (G, T, J, K), keys and values (G, T, K), each in memory of its own or as it was."""
    q_GTJK = q_THK.unflatten(1, (k_TGK.shape[1], -1)).transpose(0, 1).contiguous()
    return q_GTJK, k_TGK.transpose(0, 1).contiguous(), v_TGK.transpose(0, 1).contiguous()


def attention_backward(do_THK: Tensor, saved: Saved, spans: list[Span], scoring: ScoreParams) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (T, H, K), k and v (T, G, K)."""
    q_GTJK, k_GTK, v_GTK, o_GTJK, probs = saved
    kv_heads, tokens, groups, width = q_GTJK.shape
    do_GTJK = do_THK.unflatten(1, (kv_heads, groups)).transpose(0, 1)
    # [dO | -D] and [V | 1]: D in as many parts as its dtype needs to hold 16 bits of it.
    parts = 1 if do_GTJK.dtype.itemsize >= 4 else 2
    do_GTJW = do_GTJK.new_empty(kv_heads, tokens, groups, width + parts)
    do_GTJW[..., :width] = do_GTJK
    D_GTJ = -(do_GTJK * o_GTJK).sum(-1, dtype=torch.float32 if parts == 2 else do_GTJK.dtype)
    for part in range(parts):
        do_GTJW[..., width + part] = D_GTJ
        D_GTJ -= do_GTJW[..., width + part]
    v_GTW = torch.cat([v_GTK, v_GTK.new_ones(kv_heads, tokens, parts)], -1)
    dq_GTJK = torch.empty_like(q_GTJK)
    wide = torch.promote_types(k_GTK.dtype, torch.float32)  # a key's gradient is a sum over many blocks
    dk_GTK, dv_GTW = torch.zeros_like(k_GTK, dtype=wide), torch.zeros_like(v_GTW, dtype=wide)
    blocks = _blocks(spans, scoring, *_sizes(q_GTJK))
    probs = probs or (None,) * len(blocks)
    scaled_GTJK, exact_GTK = _exact(q_GTJK, k_GTK, scoring) if any(p is None for p in probs) else (q_GTJK, k_GTK)
    scratch = _scratch(blocks, q_GTJK.device)
    for block, p_GYn in zip(blocks, probs, strict=True):
        if p_GYn is None:
            p_GYn = _probabilities(scaled_GTJK, exact_GTK, block, scoring, q_GTJK.dtype, scratch)
        do_GYW, q_GYK, k_GnK = block.rows(do_GTJW), block.rows(q_GTJK), block.keys(k_GTK)
        here: list[Tensor | None] = [None, None, None]
        if scratch is not None:
            shapes = (p_GYn.shape, k_GnK.shape, (*k_GnK.shape[:2], width + parts))
            named = zip(("ds", "dk", "dv"), shapes, (2, 1, 1), strict=True)
            here = [scratch.get(name, shape, axis, q_GTJK.dtype) for name, shape, axis in named]
        ds_GYn = torch.bmm(do_GYW, block.keys(v_GTW).mT, out=here[0]).mul_(p_GYn)
        if scoring.softcap is not None:
            ds_GYn *= _softcap_slope(q_GYK, k_GnK, scoring)
        torch.bmm(ds_GYn, k_GnK, out=block.rows(dq_GTJK))
        block.add(dk_GTK, torch.bmm(ds_GYn.mT, q_GYK, out=here[1]))
        block.add(dv_GTW, torch.bmm(p_GYn.mT, do_GYW, out=here[2]))
    dq_THK = dq_GTJK.transpose(0, 1).reshape(do_THK.shape).mul_(scoring.scale)
    dk_TGK = dk_GTK.mul_(scoring.scale).to(k_GTK.dtype).transpose(0, 1)
    return dq_THK, dk_TGK, dv_GTW[..., :width].to(v_GTK.dtype).transpose(0, 1)


def attention(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, spans: list[Span], scoring: ScoreParams) -> Tensor:
    """The same on any device, recorded by autograd.

    Returns:
        Output of shape (T, H, K).
    """
    if gpu_kernel(q_THK, scoring) is not None:
        return reach_attention(q_THK, k_TGK, v_TGK, [Reach.of(span) for span in spans], scoring)
    return _BlocksFunction.apply(q_THK, k_TGK, v_TGK, spans, scoring)  # type: ignore[return-value]


def reach_attention(q_THK: Tensor, k_nGK: Tensor, v_nGK: Tensor, reaches: Sequence[Reach], scoring: ScoreParams) -> Tensor:
    """Attention of queries over keys that need not stand where the queries do, where ``gpu_kernel`` names a kernel.

    Args:
        q_THK: queries.
        k_nGK, v_nGK: keys and values, of any number.
        reaches: cover all T queries in order.

    Returns:
        Output of shape (T, H, K), recorded by autograd.
    """
    kernel = gpu_kernel(q_THK, scoring)
    assert kernel is not None
    return {"flash": _flash, "documents": _by_document}[kernel](q_THK, k_nGK, v_nGK, reaches, scoring)


def gpu_kernel(q_THK: Tensor, scoring: ScoreParams) -> Literal["flash", "documents"] | None:
    """Which of PyTorch's kernels computes this attention on a GPU: flash, another a document, or none; None off a GPU."""
    if not q_THK.is_cuda or scoring.softcap is not None or scoring.sinks_H is not None:
        return None
    capability = torch.cuda.get_device_capability(q_THK.device)
    return "flash" if flash_fits(capability, q_THK.dtype, q_THK.shape[-1], scoring) else "documents"


def flash_fits(capability: tuple[int, int] | None, dtype: torch.dtype, width: int, scoring: ScoreParams) -> bool:
    """Whether PyTorch's flash kernel computes this attention.

    Args:
        capability: of the GPU, None for no GPU.
        dtype: of the queries.
        width: features of a head.
    """
    plain = scoring.softcap is None and scoring.sinks_H is None
    sized = width <= FLASH_WIDTH and width % 8 == 0 and dtype in (torch.bfloat16, torch.float16)
    return plain and sized and capability is not None and capability >= (8, 0)


def _flash(q_THK: Tensor, k_nGK: Tensor, v_nGK: Tensor, reaches: Sequence[Reach], scoring: ScoreParams) -> Tensor:
    seen, borders, longest = flash_layout(tuple(reaches), q_THK.device)
    if seen is not None:
        k_nGK, v_nGK = k_nGK[seen], v_nGK[seen]
    options = flash_options(scoring, q_THK.shape[1] != k_nGK.shape[1])
    return on_gpu.varlen_attn(q_THK, k_nGK, v_nGK, *borders, *longest, **options)  # type: ignore[return-value]


def flash_options(scoring: ScoreParams, shares_keys: bool) -> dict[str, Any]:
    """Keywords of PyTorch's flash attention.

    Args:
        shares_keys: several query heads see one key head.
    """
    window = (-1 if scoring.window is None else scoring.window - 1, 0)
    options: dict[str, Any] = {"scale": scoring.scale, "window_size": window}
    if "enable_gqa" in inspect.signature(on_gpu.varlen_attn).parameters:  # since PyTorch 2.12; 2.11 shares keys without asking
        options["enable_gqa"] = shares_keys
    return options


@lru_cache(maxsize=8)  # of all layers of a pack, forward and recomputed
def flash_layout(reaches: tuple[Reach, ...], device: torch.device) -> tuple[Tensor | None, list[Tensor], tuple[int, int]]:
    """Index of the keys where they do not stand as they are seen, borders of queries and of keys, the longest run of each."""
    with torch.inference_mode(False):  # one filled by an evaluation may be met again in training
        seen = None
        if any(reach.keys != ((reach.start, reach.end),) for reach in reaches):
            seen = torch.cat([torch.arange(*keys) for reach in reaches for keys in reach.keys])
            seen = upload(seen, device)
        queries = [reach.end - reach.start for reach in reaches]
        keys = [_count(reach.keys) for reach in reaches]
        borders = [upload(torch.tensor([0, *accumulate(n)], dtype=torch.int32), device) for n in (queries, keys)]
        return seen, borders, (max(queries), max(keys))


def _count(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


def _by_document(q_THK: Tensor, k_nGK: Tensor, v_nGK: Tensor, reaches: Sequence[Reach], scoring: ScoreParams) -> Tensor:
    """By ``scaled_dot_product_attention``, one call a reach, or a few short ones that stand side by side."""
    q_GJTK = q_THK.unflatten(1, (k_nGK.shape[1], -1)).permute(1, 2, 0, 3)
    outs: list[Tensor] = []
    for reach, lengths in _side_by_side(reaches, scoring.window):
        shared, own = _count(reach.keys[:-1]), reach.end - reach.start
        plain = shared == 0 and len(lengths) == 1 and (scoring.window is None or own <= scoring.window)
        mask_Ln = None if plain else _seen(lengths, shared, scoring.window, q_THK.device)
        k_GJnK, v_GJnK = (
            _ranges(x, reach.keys).transpose(0, 1)[:, None].expand(-1, len(q_GJTK[0]), -1, -1) for x in (k_nGK, v_nGK)
        )
        q_GJLK = q_GJTK[:, :, reach.start : reach.end]
        outs.append(
            scaled_dot_product_attention(q_GJLK, k_GJnK, v_GJnK, attn_mask=mask_Ln, is_causal=plain, scale=scoring.scale)
        )
    return torch.cat(outs, 2).permute(2, 0, 1, 3).flatten(1, 2)


def _ranges(x_nGK: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    parts = [x_nGK[start:end] for start, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _side_by_side(reaches: Sequence[Reach], window: int | None) -> list[tuple[Reach, tuple[int, ...]]]:
    """Reaches, short neighbours that see the same beyond themselves as one, and the lengths of which each is made."""
    joined: list[tuple[Reach, tuple[int, ...]]] = []
    for reach in reaches:
        own = reach.keys[-1]
        if joined:
            before, lengths = joined[-1]
            rows, same = reach.end - before.start, before.keys[:-1] == reach.keys[:-1]
            follows = before.end == reach.start and before.keys[-1][1] == own[0]
            if same and follows and rows <= GPU_JOINED and (window is None or _count(reach.keys[:-1]) + rows <= window):
                whole = Reach(before.start, reach.end, (*reach.keys[:-1], (before.keys[-1][0], own[1])))
                joined[-1] = whole, (*lengths, reach.end - reach.start)
                continue
        joined.append((reach, (reach.end - reach.start,)))
    return joined


@lru_cache(maxsize=16)  # of all layers of a pack
def _seen(lengths: tuple[int, ...], shared: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the shared keys and of their own the queries of some documents see; bool, shape (L, n)."""
    with torch.inference_mode(False):
        rows = sum(lengths)
        own = torch.block_diag(*(torch.ones(length, length, device=device).tril_() for length in lengths)).bool()
        sees_Ln = torch.cat([torch.ones(rows, shared, dtype=torch.bool, device=device), own], 1)
        if window is None:
            return sees_Ln
        behind_Ln = torch.arange(shared, shared + rows, device=device)[:, None] - torch.arange(shared + rows, device=device)
        return sees_Ln & (behind_Ln < window)


class _BlocksFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, spans: list[Span], scoring: ScoreParams) -> Tensor:
        o_THK, saved = attention_forward(q_THK, k_TGK, v_TGK, spans, scoring)
        ctx.save_for_backward(*saved.tensors())
        ctx.spans, ctx.scoring = spans, scoring
        return o_THK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *attention_backward(grads[0], Saved.from_tensors(ctx.saved_tensors), ctx.spans, ctx.scoring), None, None


class _Block(NamedTuple):
    """Some queries of a span, or all of a few short ones, and the two ranges of keys that one of them at least may see.

    Attributes:
        lengths: queries of each span.
    """

    start: int
    end: int
    key_start: int
    prefix_start: int
    prefix_end: int
    short: bool
    lengths: tuple[int, ...]

    def keys(self, values_GTW: Tensor) -> Tensor:
        """Rows of the prefix and of the span itself, shape (G, n, W)."""
        inside = values_GTW[:, self.key_start : self.end]
        if self.prefix_start == self.prefix_end:
            return inside
        return torch.cat([values_GTW[:, self.prefix_start : self.prefix_end], inside], 1)

    def rows(self, values_GTJW: Tensor) -> Tensor:
        """The queries with all their heads, shape (G, Y, W), a view."""
        kv_heads, _, groups, width = values_GTJW.shape
        return values_GTJW[:, self.start : self.end].view(kv_heads, (self.end - self.start) * groups, width)

    def add(self, total_GTW: Tensor, part_GnW: Tensor) -> None:
        """Add gradients of the keys to where the keys stand."""
        shared = self.prefix_end - self.prefix_start
        if shared:
            total_GTW[:, self.prefix_start : self.prefix_end] += part_GnW[:, :shared]
        total_GTW[:, self.key_start : self.end] += part_GnW[:, shared:]


def _sizes(q_GTJK: Tensor) -> tuple[int, int]:
    """Queries of a block, and of one of several spans."""
    return (GPU_BLOCK, GPU_BLOCK) if q_GTJK.is_cuda else (BLOCK, JOINED)


def _blocks(spans: list[Span], scoring: ScoreParams, size: int, most: int) -> list[_Block]:
    blocks = []
    for span, lengths in _joined(spans, scoring.window, most):
        shared = span.prefix_end - span.prefix_start
        if len(lengths) > 1:
            blocks.append(_Block(span.start, span.end, span.start, span.prefix_start, span.prefix_end, True, lengths))
            continue
        short = shared + span.end - span.start <= KEEP_PROBS_UP_TO  # many short spans may see one long prefix
        for start in range(span.start, span.end, size):
            reach = span.end - span.start + shared if scoring.window is None else scoring.window - 1
            oldest = start - span.start + shared - reach  # position in prefix and span of the oldest key seen
            key_start = span.start + max(0, oldest - shared)
            prefix_start = min(span.prefix_end, span.prefix_start + max(0, oldest))
            end = min(span.end, start + size)
            blocks.append(_Block(start, end, key_start, prefix_start, span.prefix_end, short, (end - start,)))
    return blocks


def _joined(spans: list[Span], window: int | None, most: int) -> list[tuple[Span, tuple[int, ...]]]:
    """The spans, those that one block of ``most`` queries can hold as one, and the lengths of which each is made."""
    joined: list[tuple[Span, tuple[int, ...]]] = []
    for span in spans:
        length = span.end - span.start
        shared = span.prefix_end - span.prefix_start
        if joined:
            before, lengths = joined[-1]
            seen = before[2:] if before.prefix_start < before.prefix_end else (span.prefix_start,) * 2
            rows = span.end - before.start
            in_sight = shared + rows <= KEEP_PROBS_UP_TO and (window is None or shared + rows <= window)
            if seen == span[2:] and before.end == span.start and rows <= most and in_sight:
                joined[-1] = Span(before.start, span.end, *span[2:]), (*lengths, length)
                continue
        joined.append((span, (length,)))
    return joined


def _exact(q_GTJK: Tensor, k_GTK: Tensor, scoring: ScoreParams) -> tuple[Tensor, Tensor]:
    """Scaled queries, and keys, in at least fp32."""
    dtype = torch.promote_types(q_GTJK.dtype, torch.float32)
    return q_GTJK.to(dtype) * scoring.scale, k_GTK.to(dtype)


def _scratch(blocks: list[_Block], device: torch.device) -> Scratch | None:
    """Memory for the blocks of long documents on a CPU; None where there are none."""
    if device.type != "cpu" or all(block.short for block in blocks):
        return None
    return Scratch(max(block.end - block.key_start + block.prefix_end - block.prefix_start for block in blocks))


def _probabilities(
    scaled_GTJK: Tensor, k_GTK: Tensor, block: _Block, scoring: ScoreParams, dtype: torch.dtype, scratch: Scratch | None
) -> Tensor:
    """Softmax of the scores of a block, shape (G, Y, n).

    Args:
        dtype: of the result; the softmax is taken in that of the scaled queries.
        scratch: where it is made; None for memory of its own.
    """
    q_GYK, k_GnK = block.rows(scaled_GTJK), block.keys(k_GTK)
    if scratch is None:
        return _softmax(torch.bmm(q_GYK, k_GnK.mT), block, scoring, None).to(dtype)
    shape = (*q_GYK.shape[:2], k_GnK.shape[1])
    s_GYn, p_GYn = (scratch.get(name, shape, 2, q_GYK.dtype) for name in ("scores", "weights"))
    p_GYn = _softmax(torch.bmm(q_GYK, k_GnK.mT, out=s_GYn), block, scoring, p_GYn)
    return p_GYn if p_GYn.dtype == dtype else scratch.get("rounded", shape, 2, dtype).copy_(p_GYn)


def _softmax(s_GYn: Tensor, block: _Block, scoring: ScoreParams, out: Tensor | None) -> Tensor:
    """Of the products of a block, which are written over, with what the queries do not see left out."""
    if scoring.softcap is not None:
        s_GYn.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    rows, keys = block.end - block.start, s_GYn.shape[2]
    s_GLJn = s_GYn.unflatten(1, (rows, -1))
    s_GLJn[..., keys - rows :] += _unseen(block.lengths, s_GYn.dtype, s_GYn.device)
    if scoring.window is not None and keys >= scoring.window:
        # Query i stands at position keys - rows + i of these keys; its window begins `window - 1` earlier.
        behind = torch.arange(keys - rows, keys, device=s_GYn.device)[:, None] - torch.arange(keys, device=s_GYn.device)
        s_GLJn.masked_fill_((behind >= scoring.window)[:, None], -torch.inf)
    if scoring.sinks_H is not None:
        sinks_GLJ = scoring.sinks_H.to(s_GYn.dtype).view(len(s_GYn), 1, -1).expand(-1, rows, -1)
        total_GY1 = torch.logaddexp(s_GYn.logsumexp(-1, keepdim=True), sinks_GLJ.reshape(len(s_GYn), -1, 1))
        return s_GYn.sub_(total_GY1).exp_()
    if out is None:
        return torch.softmax(s_GYn, -1)
    return torch.ops.aten._softmax.out(s_GYn, -1, False, out=out)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _unseen(lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a query does not see a key of its own block, zero elsewhere; shape (rows, 1, rows)."""
    sees = torch.block_diag(*(torch.ones(length, length, device=device).tril_() for length in lengths)).bool()
    return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, -torch.inf)[:, None]


def _softcap_slope(q_GYK: Tensor, k_GnK: Tensor, scoring: ScoreParams) -> Tensor:
    """Derivative of the soft-capped score by the score: ``1 - tanh^2``."""
    assert scoring.softcap is not None
    exact = torch.float32 if q_GYK.dtype.itemsize < 4 else q_GYK.dtype
    s_GYn = torch.bmm(q_GYK.to(exact), k_GnK.to(exact).mT).mul_(scoring.scale / scoring.softcap).tanh_()
    return s_GYn.square_().neg_().add_(1).to(q_GYK.dtype)
