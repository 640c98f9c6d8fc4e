"""The adapter of a run as a LoRA GGUF, which llama.cpp applies to a base GGUF request by request.

One base in memory serves many adapters, and an adapter is a small file beside a merged model. The file is made by
``convert_lora_to_gguf.py`` as llama.cpp ships it, in a child process: it knows which weights an architecture reorders (q and k
of those whose rotary positions take neighbouring pairs), and such a weight's B goes the same way. Ours is what that script
does not look at:

- **The scale.** llama.cpp multiplies by ``adapter.lora.alpha / rank``; rank-stabilised LoRA by ``alpha / sqrt(rank)``. The
  script copies ``lora_alpha``, so it is given a PEFT directory whose ``lora_alpha`` is our scale times the rank.
- **What llama.cpp would not apply.** DoRA's magnitudes and adapters of stacked experts stop the script in its middle. An
  adapter on ``per_layer_model_projection`` is converted, loaded, and has no effect, because that product is taken outside of
  the function that adds adapters (an ``all-linear`` adapter then agrees with its own training on 47 % of tokens). Under tied
  embeddings the head has no tensor of its own to adapt. All of these are refused by name before anything is run.
- **Proof.** The file is read again: every target is there under its GGUF name, nothing else is, and each factor equals trained
  to the last bit, B up to the order of its rows. That is why the factors are written in fp32, as they were trained: 16 bits
  would save half of a small file and leave nothing to compare.

Layers whose values are their keys need no second adapter here: llama.cpp computes the values from the adapted keys.

Refused: a writer of our own, which would have to know every architecture's reorderings. Cost: a child process that imports
torch, 5 s.

Sources: llama.cpp b10605, ``convert_lora_to_gguf.py``, ``src/llama-adapter.h`` (``get_scale``), ``src/llama-adapter.cpp``,
``src/models/gemma4.cpp`` (``project_per_layer_inputs``). rsLoRA: Kalajdzievski 2023
(arXiv 2312.03732).

Shape suffixes: R rank, O out_features.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.convert import run_converter
from tunesmith.checkpoints.hf import read_config
from tunesmith.errors import ExportError
from tunesmith.models.adapter import CONFIG, PREFIX, WEIGHTS, read_adapter, read_lora
from tunesmith.rundir import write_json

MERGED = "serve the merged GGUF, which holds all that was trained"
NOT_APPLIED = ("per_layer_model_projection",)  # multiplied by ggml_mul_mat, which knows no adapters
FACTORS = (".lora_A.weight", ".lora_B.weight")


def write_lora_gguf(adapter: Path, base: Path, target: Path) -> int:
    """Write a PEFT adapter as a LoRA GGUF in fp32.

    Args:
        adapter: PEFT adapter directory.
        base: directory of the base model; its ``config.json`` alone is read.
        target: file to write, whole or not at all.

    Returns:
        Factors in the file, two a target.

    Raises:
        ExportError: something that llama.cpp would not apply, a converter that failed, or a file that is not the adapter.
        ModelError: adapter or base cannot be read.
    """
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8")) if (adapter / CONFIG).exists() else {}
    state = read_adapter(adapter)
    model, _ = read_config(base)
    _refuse(adapter, config, list(state), tied=bool(model.tie_word_embeddings))
    factors = {key: tensor.float().numpy() for key, tensor in state.items()}
    rank, scale = int(config["r"]), read_lora(adapter).scale
    unchecked = target.with_name(f".{target.name}.unchecked")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / target.stem  # the name that the converter puts into the file
            write_json(folder / CONFIG, {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank})
            (folder / WEIGHTS).symlink_to((adapter / WEIGHTS).absolute())
            run_converter("convert_lora_to_gguf.py", [str(folder), "--base", str(base), "--outtype", "f32"], unchecked)
        tensors = _check(unchecked, adapter, factors, scale, int(model.num_hidden_layers))
        unchecked.replace(target)
    finally:
        unchecked.unlink(missing_ok=True)
    return tensors


def gguf_names(architecture: str, layers: int) -> gguf.TensorNameMap:
    """The GGUF names of an architecture's tensors.

    Args:
        architecture: ``general.architecture`` of its files.
        layers: blocks of the model.

    Raises:
        ExportError: the installed ``gguf`` does not know the architecture.
    """
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise ExportError(f"architecture {architecture}: the installed gguf package has no names for it", "upgrade gguf")
    return gguf.get_tensor_name_map(known[architecture], layers)


def _refuse(adapter: Path, config: Mapping[str, Any], keys: list[str], tied: bool) -> None:
    """All that the converter or llama.cpp would drop, or stop at without saying what to do."""
    if config.get("use_dora") or any(key.endswith("lora_magnitude_vector") for key in keys):
        raise ExportError(f"{adapter}: llama.cpp does not apply DoRA", MERGED)
    if config.get("target_parameters"):
        first = config["target_parameters"][0]
        raise ExportError(f"{adapter}: llama.cpp's converter takes no adapters of stacked experts, first {first}", MERGED)
    if config.get("modules_to_save"):
        raise ExportError(f"{adapter}: llama.cpp's adapters hold no whole tables (modules_to_save)", MERGED)
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise ExportError(f"{adapter}: {key} gives layers scales of their own; llama.cpp has one alpha for all", MERGED)
    for key in keys:
        if not key.endswith(FACTORS):
            raise ExportError(f"{adapter}: {key} is no factor of a linear layer; llama.cpp would not apply it", MERGED)
        layer = key.rsplit(".lora_", 1)[0]
        if layer.endswith(NOT_APPLIED):
            raise ExportError(f"{adapter}: an adapter on {layer.removeprefix(PREFIX)} has no effect in llama.cpp", MERGED)
        if tied and layer.endswith(".lm_head"):
            raise ExportError(f"{adapter}: lm_head is tied to the embedding, so a GGUF has no tensor to adapt", MERGED)


def _check(path: Path, adapter: Path, factors: Mapping[str, NDArray[Any]], scale: float, layers: int) -> int:
    """Whether the file is the adapter: scale, targets, factors. Returns the number of its tensors."""
    reader = GgufReader(path)
    architecture = reader.value("general.architecture")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    names = gguf_names(architecture, layers)
    hint = f"llama.cpp's converter and the adapter disagree; {MERGED}"
    for key, trained in factors.items():
        layer, _, factor = key.removeprefix(PREFIX).rpartition(".lora_")
        weight = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if weight is None:
            raise ExportError(f"{layer}: no GGUF name in architecture {architecture}", hint)
        name = f"{weight}.lora_{factor[0].lower()}"
        if name not in tensors:
            raise ExportError(f"{adapter}: target {layer} was dropped: the LoRA GGUF has no {name}", hint)
        values = tensors.pop(name)
        same = np.array_equal(trained, values) or (factor.startswith("B") and np.array_equal(_sorted(trained), _sorted(values)))
        if not same:
            raise ExportError(f"{adapter}: {key} and {name} of the LoRA GGUF are not the same numbers", hint)
        rank = trained.shape[0 if factor.startswith("A") else 1]
        applied = float(reader.value("adapter.lora.alpha")) / rank
        if abs(applied - scale) > 1e-6 * scale:
            raise ExportError(f"{layer}: llama.cpp would apply the update times {applied:g}, not {scale:g}", hint)
    if tensors:
        raise ExportError(f"{adapter}: the LoRA GGUF holds {sorted(tensors)[0]}, which was not trained", hint)
    return len(reader.tensors)


def _sorted(factor_OR: NDArray[Any]) -> NDArray[Any]:
    """The rows in an order that depends on their values alone."""
    return factor_OR[np.lexsort(factor_OR.T)]
