"""The importance matrix: how much of what a weight's column multiplies ever arrives there.

A quantiser that minimises the squared error of a weight treats its columns alike. The error of the output is what counts,
and there a column's share is its error times the mean square of the inputs that it meets: E[(dW x)^2] is the sum over the
columns of dW_i^2 E[x_i^2], where inputs are not correlated. llama.cpp's quantiser takes those mean squares as weights. Here
they come from the rows that the model was trained on, so that what is rounded well is what this model is used for.

**Whose inputs.** Those of the model that is quantised (the merged one; the base, whose grid ``train.qat`` keeps), as stock
modules (``models/load.py``), since modules
that fuse several products have no input of their own to watch. Hooks on the linear layers see each input; nothing is
patched and the model leaves as it came. Experts are watched at their module: each has sums and a count of its own, from
the tokens that were sent to it, and the input of its second product is made again by the code that trains them
(``layers/experts.py``), which costs its first product twice. What was not reached is an error, never a missing entry.

**Which weights.** Those of the blocks, as ``llama-imatrix`` does: the head is better quantised without (its README), and so
it is not even computed; an embedding is looked up, not multiplied.

**How many tokens.** ``TOKENS``, in whole rows drawn over the whole train part: files in use hold 200 to 260 chunks of 512
tokens (110 to 130 thousand), and the mean of 100,000 squares has a standard error of 1 % where inputs have a kurtosis of 10.
Rows are packed as in training, so that short ones cost no more a token than long ones.

The file is llama.cpp's (``checkpoints/gguf_write/imatrix.py``).

Refused: ``llama-imatrix`` on rendered text (a tool that no package ships, and text that it tokenises anew).

Checked once against ``llama-imatrix`` on a model of 135 M weights and 1,024 tokens: the same 210 tensors, no value off by
more than 0.24 % of its tensor's largest (it multiplies in fp16); and ``llama-quantize`` made of our file, and we of its
values, the same bytes.

Cost: one forward pass over the tokens without the head; two numbers a column.

Sources: llama.cpp b10605, ``tools/imatrix/imatrix.cpp``, ``common/imatrix-loader.cpp``, ``tools/quantize/quantize.cpp``;
llama.cpp pull request 4861.

Shape suffixes: T tokens, I in_features, O out_features; here: M matrices of a weight (one, or the experts of a stack), K
experts a token.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tunesmith.checkpoints.gguf_write.architecture import architecture_of
from tunesmith.checkpoints.gguf_write.imatrix import Importance
from tunesmith.errors import ExportError
from tunesmith.export.gguf.lora import gguf_names
from tunesmith.kernels.attention import Span
from tunesmith.layers.experts import LoRAExperts
from tunesmith.models.attention import PACKED
from tunesmith.models.device import best_device
from tunesmith.models.load import attention, decoder, load_model
from tunesmith.models.precision import Dtype
from tunesmith.rundir import read_json
from tunesmith.tracking import progress

TOKENS = 100_000
PACK = 2048  # tokens of a forward pass, more where one row is longer
NEVER = ("_norm.weight", "ffn_gate_inp.weight")  # llama-quantize leaves them as they are
Hook = RemovableHandle


class _Total:
    """Sums of one input, shared by all weights that read it; fp64 on the CPU, whatever the model computes in."""

    def __init__(self, matrices: int, columns: int):
        self.sums_MI = np.zeros((matrices, columns))
        self.counts_M = np.zeros(matrices)

    def add(self, matrix: int, x: Tensor) -> None:
        """Add rows, shape (..., I): squared and summed in fp32, at most a few thousand, then in fp64."""
        rows_TI = x.detach().reshape(-1, x.shape[-1]).float()
        self.sums_MI[matrix] += rows_TI.square().sum(0).cpu().numpy()
        self.counts_M[matrix] += len(rows_TI)


def choose(lengths: Sequence[int] | NDArray[np.int64], tokens: int = TOKENS) -> list[int]:
    """Rows to collect from: drawn over all of them (files are often sorted), always the same, in the order of the file.

    Args:
        lengths: tokens of each row.
        tokens: rows are taken until they hold this many.
    """
    order = np.random.default_rng(0).permutation(len(lengths))
    before = np.cumsum(np.asarray(lengths)[order]) - np.asarray(lengths)[order]
    return sorted(order[before < tokens].tolist())


def measure(
    directory: Path, compute: Dtype, lengths: NDArray[np.int64], ids: Callable[[int], NDArray[Any]]
) -> tuple[Importance, int]:
    """Read the chosen rows with the model of a directory.

    Args:
        directory: of a dense model.
        compute: dtype of its products.
        lengths: tokens of each row there is.
        ids: the token ids of a row, by its number.

    Returns:
        The importance, and how many rows were read.

    Raises:
        ExportError: see ``collect``.
    """
    rows = choose(lengths)
    architecture = gguf.MODEL_ARCH_NAMES[architecture_of(str(read_json(directory / "config.json")["architectures"][0]))]
    model = load_model(directory, compute, None, best_device())
    return collect(model, (ids(row).tolist() for row in rows), architecture), len(rows)


def collect(model: PreTrainedModel, documents: Iterable[Sequence[int]], architecture: str) -> Importance:
    """Read the documents and add up what arrives at every weight that is quantised.

    Args:
        model: of stock modules, as ``load_model`` gives it.
        documents: token ids of each; none sees another. ``choose`` says which.
        architecture: ``general.architecture`` of the model's GGUF.

    Raises:
        ExportError: no documents, an architecture or a weight that has no GGUF name, a weight that nothing arrived at,
            inputs that are not finite.
    """
    packs = list(_packs(documents))
    if not packs:
        raise ExportError("no rows to collect the importance matrix from", "is the train part empty?")
    text = decoder(model)
    totals: dict[str, _Total] = {}
    with contextlib.ExitStack() as hooks:
        for hook in _watch(model, architecture, totals):
            hooks.callback(hook.remove)
        hooks.enter_context(attention(model, PACKED))
        hooks.enter_context(torch.no_grad())
        bar = hooks.enter_context(progress("importance matrix", len(packs)))
        for pack in packs:
            ids_1T, position_1T = (torch.tensor(part, device=model.device)[None] for part in (pack.ids, pack.positions))
            text(input_ids=ids_1T, position_ids=position_1T, spans=pack.spans, use_cache=False)
            bar.advance()
    for name, total in totals.items():
        if not total.counts_M.any():
            raise ExportError(f"{name}: no input arrived while the rows were read", "collect from stock modules, not fused")
        if not np.isfinite(total.sums_MI).all():
            raise ExportError(f"{name}: inputs are not finite", "does the merged model answer? compute in fp32 or bf16")
    return Importance(
        {name: total.sums_MI.astype(np.float32) for name, total in sorted(totals.items())},
        {name: total.counts_M.astype(np.float32) for name, total in sorted(totals.items())},
        sum(len(pack.ids) for pack in packs),
    )


class _Pack(NamedTuple):
    """Documents one after another."""

    ids: list[int]
    positions: list[int]
    spans: list[Span]


def _packs(documents: Iterable[Sequence[int]]) -> Iterator[_Pack]:
    """Whole documents, at most ``PACK`` tokens together unless one is longer."""
    pack = _Pack([], [], [])
    for document in documents:
        if pack.ids and len(pack.ids) + len(document) > PACK:
            yield pack
            pack = _Pack([], [], [])
        start = len(pack.ids)
        pack.ids.extend(int(token) for token in document)
        pack.positions.extend(range(len(document)))
        pack.spans.append(Span(start, start + len(document), start, start))
    if pack.ids:
        yield pack


def _watch(model: PreTrainedModel, architecture: str, totals: dict[str, _Total]) -> list[Hook]:
    """Hook every module whose weight is quantised; ``totals`` gets an entry for each weight.

    Raises:
        ExportError: a weight that has no GGUF name, or a module of another kind.
    """
    text = decoder(model)
    config: Any = model.config.get_text_config()
    names = gguf_names(architecture, config.num_hidden_layers)
    prefix = next(name for name, module in model.named_modules() if module is text)
    hooks: list[Hook] = []
    for place, module in text.named_modules(prefix=prefix):
        large = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim > 1 and not name.endswith("_bias")}
        if {"gate_up_proj", "down_proj"} <= large.keys():
            hooks.append(_watch_experts(place, module, names, totals))
            continue
        for leaf in large:
            name = names.get_name(f"{place}.{leaf}", try_suffixes=(".weight",))
            if name is not None and (not name.startswith("blk.") or name.endswith(NEVER)):
                continue
            if name is None or type(module) is not nn.Linear:
                kind = f"{place}.{leaf} of a {type(module).__name__}"
                raise ExportError(f"{kind}: not a weight that the importance matrix knows", "export.imatrix: false")
            total = totals[name] = _Total(1, module.in_features)
            hooks.append(module.register_forward_pre_hook(functools.partial(_add, total)))
    return hooks


def _add(total: _Total, _: nn.Module, inputs: tuple[Any, ...]) -> None:
    total.add(0, inputs[0])


def _watch_experts(place: str, module: nn.Module, names: gguf.TensorNameMap, totals: dict[str, _Total]) -> Hook:
    """Hook a stock experts module: both of its inputs, expert by expert."""
    ours = LoRAExperts(module, 1, 0.0)  # the very same weights, and the gate between the products
    first, second = ours.gate_up_proj, ours.down_proj
    into, inner = _Total(first.experts, first.in_features), _Total(second.experts, second.in_features)
    up = [names.get_name(f"{place}.gate_up_proj")]  # one stack in some architectures, two in others
    if up == [None]:
        up = [names.get_name(f"{place}.{part}") for part in ("gate_proj", "up_proj")]
    down = names.get_name(f"{place}.down_proj")
    for name, total in ((up[0], into), (up[-1], into), (down, inner)):
        if name is None:
            raise ExportError(f"{place}: no GGUF name for its weights", "export.imatrix: false")
        totals[f"{name}.weight"] = total

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden_TI, index_TK = inputs[0], inputs[1]
        for expert in index_TK.unique().tolist():
            if expert == first.experts:
                continue  # a place that no expert takes
            x_TI = hidden_TI[(index_TK == expert).any(1)]
            into.add(expert, x_TI)
            gate_up = nn.functional.linear(x_TI, first.base_OI(expert, x_TI.dtype), first.bias_O(expert, x_TI.dtype))
            inner.add(expert, ours.gate.forward(gate_up))

    return module.register_forward_pre_hook(hook)
