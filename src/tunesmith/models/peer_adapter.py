"""An adapter that another tool wrote, as the PEFT directory that everything here reads.

PEFT's own form (Unsloth, TRL, Axolotl, LLaMA-Factory and ms-swift write it) is copied file by file. mlx-lm has a form of its
own: ``adapters.safetensors`` with ``lora_a`` (in, rank) and ``lora_b`` (rank, out), the transposes of PEFT's, a scale that is
applied as it stands (PEFT's is alpha / r), and with DoRA the length of every row under ``m``. It is converted without a
rounding: the numbers are the same and only their order differs. What such a file can hold and a LoRA of linear layers cannot
(whole layers, adapters of embeddings or of switched experts) is refused by its name.

Which tool it was is told from what the tool leaves beside the weights, and is said, never relied on.

Source: mlx-lm's documented layout (``LORA.md``, ``tuner/lora.py`` and ``tuner/dora.py``). Refused: reading both forms wherever
an adapter is loaded.

Shape suffixes: I in_features, O out_features, R rank.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import jiter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.checkpoints.prescan import ADAPTER, check_safetensors
from tunesmith.errors import ModelError
from tunesmith.models.adapter import PREFIX, read_adapter
from tunesmith.models.identity import FACTS
from tunesmith.models.nf4_load import shorten
from tunesmith.recipe.adapter import CONFIG, CONFIG_BYTES, WEIGHTS, read_adapter_config
from tunesmith.rundir import write_json

MLX_WEIGHTS = "adapters.safetensors"
README_BYTES = 2**16
LARGEST_SCALE = 1e30
FUSE = "make a whole model of it with mlx_lm.fuse --de-quantize, and give that as merged (--merged DIR)"
TOOLS = {"unsloth": "Unsloth", "axolotl": "Axolotl", "llama-factory": "LLaMA-Factory", "swift": "ms-swift", "trl": "TRL"}


def peft_form(source: Path, target: Path) -> list[str]:
    """Write an adapter as a PEFT directory.

    Args:
        source: directory of PEFT's form or of mlx-lm's.
        target: an existing, empty directory.

    Returns:
        What was converted, a line each.

    Raises:
        ModelError: no adapter there, one of another kind, a damaged file, or one that asks for what is not applied here.
    """
    if not source.is_dir():
        raise ModelError(f"{source}: no such adapter directory", f"give the directory that holds {CONFIG}")
    if (source / MLX_WEIGHTS).exists() and not (source / WEIGHTS).exists():
        return _from_mlx(source, target)
    if not (source / CONFIG).exists():
        raise ModelError(f"{source}: no {CONFIG} there, so it is no adapter{_instead(source)}", _hint(source))
    read_adapter_config(source)
    read_adapter(source)
    for name in (CONFIG, WEIGHTS, FACTS):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return []


def tool_of(directory: Path) -> str | None:
    """The tool that seems to have written an adapter or a model directory; None where nothing says so."""
    if (directory / FACTS).exists():
        return "tunesmith"
    if (directory / MLX_WEIGHTS).exists():
        return "mlx-lm"
    if (directory / "args.json").exists() and (directory / "additional_config.json").exists():
        return "ms-swift"
    card = directory / "README.md"
    text = card.read_bytes()[:README_BYTES].decode("utf-8", "replace").lower() if card.is_file() else ""
    front = text.split("\n---", 1)[0]
    found = next((tool for word, tool in TOOLS.items() if re.search(rf"\b{word}\b", front)), None)
    return found or ("PEFT" if (directory / CONFIG).exists() else None)


def _from_mlx(source: Path, target: Path) -> list[str]:
    config = _mlx_config(source / CONFIG)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(
            f"{source / CONFIG}: fine_tune_type is {kind!r}, expected lora or dora",
            FUSE,
        )
    settings = config.get("lora_parameters")
    scale = settings.get("scale") if isinstance(settings, dict) else None
    if not isinstance(scale, int | float) or not 0 < scale <= LARGEST_SCALE:
        raise ModelError(
            f"{source / CONFIG}: lora_parameters.scale is {scale!r}, expected a positive number", "get the adapter again"
        )
    path = source / MLX_WEIGHTS
    try:
        check_safetensors(path, ADAPTER)
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read: {error}", "get the file again") from error
    modules = sorted({name.removesuffix(".lora_a") for name in state if name.endswith(".lora_a")})
    known = {f"{module}.{part}" for module in modules for part in ("lora_a", "lora_b", *(["m"] if kind == "dora" else []))}
    if state.keys() != known or not modules:
        odd = sorted(state.keys() ^ known)
        what = "; ".join(f"{name} is {'not expected' if name in state else 'missing'}" for name in odd[:3])
        raise ModelError(f"{path}: not an adapter of linear layers: {what or 'no lora_a'}", FUSE)
    peft: dict[str, Tensor] = {}
    for module in modules:
        A_IR, B_RO = state[f"{module}.lora_a"], state[f"{module}.lora_b"]
        if A_IR.ndim != 2 or B_RO.ndim != 2 or A_IR.shape[1] != B_RO.shape[0]:
            shapes = f"{tuple(A_IR.shape)} and {tuple(B_RO.shape)}"
            raise ModelError(f"{path}: {module} has factors of shape {shapes}, expected (in, rank) and (rank, out)", FUSE)
        peft[f"{PREFIX}{module}.lora_A.weight"] = A_IR.T.contiguous()
        peft[f"{PREFIX}{module}.lora_B.weight"] = B_RO.T.contiguous()
        if kind == "dora":
            peft[f"{PREFIX}{module}.lora_magnitude_vector"] = state[f"{module}.m"].flatten()
    ranks = sorted({state[f"{module}.lora_a"].shape[1] for module in modules})
    if len(ranks) > 1:
        raise ModelError(f"{path}: ranks {ranks}, expected one", FUSE)
    save_file(peft, target / WEIGHTS, metadata={"format": "pt"})
    facts: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.get("model"),
        "r": ranks[0],
        "lora_alpha": scale * ranks[0],
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "use_dora": kind == "dora",
        "inference_mode": True,
    }
    write_json(target / CONFIG, facts)
    read_adapter_config(target)
    read_adapter(target)
    return [f"converted from mlx-lm's form: {len(modules)} layers ({shorten(modules)}), rank {ranks[0]}, scale {scale:g}"]


def _mlx_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes() if path.stat().st_size <= CONFIG_BYTES else b""
        config = jiter.from_json(text)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}", "give the whole directory that mlx_lm.lora wrote") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a {type(config).__name__}, expected keys and values", "get the adapter again")
    return config


def _instead(source: Path) -> str:
    """What the directory is, where that can be seen."""
    if (source / "config.json").exists():
        return "; it is a whole model"
    inner = sorted(file.parent.name for file in source.glob(f"*/{CONFIG}"))
    return f"; there are adapters below it: {', '.join(inner[:5])}" if inner else ""


def _hint(source: Path) -> str:
    if (source / "config.json").exists():
        return "name it with merged: (--merged DIR)"
    inner = sorted(source.glob(f"*/{CONFIG}"))
    return f"name one of them: {inner[-1].parent}" if inner else "give a directory that PEFT, mlx-lm or tunesmith train wrote"
