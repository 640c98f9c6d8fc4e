"""A base model with new tokens: a directory like any other, made once and kept in the cache.

A template for tools or personas may write tokens that the vocabulary lacks. The tokenizer gets them at its end, and where the
tables have no rows to spare (many checkpoints have more rows than their tokenizer has tokens), the embedding and the head get
rows too. Every new row is the mean of the rows in use, so that a new token is at first neither likely nor far off; rows of
noise make all others unlikely (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").

The result is written as a model directory, and not made anew in memory by each loader: whoever loads, quantises, streams,
merges or converts then meets an ordinary base. Only the tables are written, in a file of their own that comes last; the other
files are links. A table lies there twice, and everybody takes the later one: our reader, transformers and llama.cpp's
converter go through the files by name.

A token with ``special: false`` is text: written in a message it is that token. ``tokenizer_config.json`` lists those under
``text_tokens``, so that the knowledge goes wherever the tokenizer goes (``chat/vocabulary.py``).

Refused: a copy of the whole checkpoint (its bytes once more), and ``resize_token_embeddings``, which loads the model.

Cost: the tables once more on the disk, and as much memory while they are written.

Shape suffixes: V vocabulary, D hidden size.
"""

import functools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunesmith import hardware
from tunesmith.checkpoints.facts import model_key
from tunesmith.checkpoints.hf import HEADS, TABLES
from tunesmith.checkpoints.names import INDEX, checkpoint_files, naming
from tunesmith.errors import ModelError
from tunesmith.recipe.data import NewToken
from tunesmith.rundir import atomic_directory, fingerprint, free_bytes, read_json, write_json
from tunesmith.rundir.records.base import Json

logger = logging.getLogger(__name__)

HEAD_BIASES = ("lm_head.bias", "language_model.lm_head.bias", "embed_out.bias")
LINKED, GROWN = "model-base-{:05d}.safetensors", "model-new-rows.safetensors"  # "b" comes before "n"


@dataclass(frozen=True)
class Grown:
    """A base with new tokens.

    Attributes:
        directory: of the model; the base's own where no token is new.
        first: id of the first new token; the others follow.
        texts: of the new tokens, in the order of their ids.
        known: tokens of the recipe that the tokenizer has already.
    """

    directory: Path
    first: int
    texts: tuple[str, ...]
    known: tuple[str, ...]


class _AddedToken(TypedDict):
    """An added token, as both files of a tokenizer write it; ``id`` in ``tokenizer.json`` alone."""

    id: NotRequired[int]
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _TokenModel(TypedDict):
    """A unigram model has pairs for a vocabulary."""

    vocab: dict[str, int] | list[tuple[str, float]]


class _TokenizerFile(TypedDict):
    """A ``tokenizer.json``, as far as it is looked at here."""

    model: _TokenModel
    added_tokens: list[_AddedToken]


class _TokenizerSettings(TypedDict, total=False):
    """A ``tokenizer_config.json``, as far as it is looked at here."""

    added_tokens_decoder: dict[str, _AddedToken]
    text_tokens: list[str]


@functools.cache
def grow(base: Path, tokens: tuple[NewToken, ...]) -> Grown:
    """A base with tokens added at the end of its vocabulary, from the cache where it was made before.

    Args:
        base: model directory (safetensors).

    Raises:
        ModelError: no ``tokenizer.json``, tables that are not found, a table that feeds every layer, or too little room on
            the disk.
    """
    try:
        tokenizer: _TokenizerFile = read_json(base / "tokenizer.json")
        there = _ids(tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{base}: chat.new_tokens needs tokenizer.json, which cannot be read: {error}", "use a model with a fast tokenizer"
        ) from error
    new = tuple(token for token in tokens if token.text not in there)
    known = tuple(token.text for token in tokens if token.text in there)
    if known:
        logger.info(f"new tokens: the tokenizer has {', '.join(known)} already; not added, and no row of theirs is trained")
    first = max(there.values()) + 1
    if not new:
        return Grown(base, first, (), known)
    names = _tables(base)
    key = fingerprint(model_key(base), [(token.text, token.special) for token in new])
    target = hardware.cache_dir() / "grown" / key
    if not (target / "config.json").exists() or not all(file.exists() for file in target.iterdir()):
        shutil.rmtree(target, ignore_errors=True)  # a link whose file is gone
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(target) as directory:
            before, after = _write_tables(base, directory, names, first, first + len(new))
            _write_beside(base, directory, tokenizer, new, first, before, after)
    return Grown(target, first, tuple(token.text for token in new), known)


def _ids(tokenizer: _TokenizerFile) -> dict[str, int]:
    """The id of every token of a ``tokenizer.json``."""
    vocabulary = tokenizer["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((piece, n) for n, (piece, _) in enumerate(vocabulary))
    return dict(pairs) | {token["content"]: token["id"] for token in tokenizer["added_tokens"] if "id" in token}


def _tables(base: Path) -> dict[str, Path]:
    """The file of each table with a row a token, by its name in the checkpoint: embedding, head and the head's bias."""
    files, of_model = checkpoint_files(base), naming(base).of_model
    text = [name for name in files if of_model(name) is not None]
    if odd := [name for name in text if "per_layer" in name and "embed" in name]:
        raise ModelError(
            f"chat.new_tokens: this model has a table that feeds every layer ({odd[0]}), to which no rows are added here",
            "use a model without one, or words that the vocabulary has",
        )
    names = [name for name in text if name.endswith(TABLES) or name in HEADS or name in HEAD_BIASES]
    embeddings = [name for name in names if name.endswith(TABLES)]
    if len(embeddings) != 1:
        found = ", ".join(embeddings) or "none"
        raise ModelError(f"{base}: chat.new_tokens needs one embedding table, found {found}", "this model cannot be extended")
    return {name: files[name] for name in names}


def _write_tables(base: Path, directory: Path, names: dict[str, Path], first: int, end: int) -> tuple[int, int]:
    """Link the files of the weights, and write the tables with their new rows behind them.

    Returns:
        Rows of the embedding before and after.
    """
    files = checkpoint_files(base)
    linked = {file: LINKED.format(number) for number, file in enumerate(sorted(set(files.values())), start=1)}
    grown: dict[str, Tensor] = {}
    rows = set[int]()
    for name, file in names.items():
        with safe_open(file, framework="pt") as opened:
            table_VD = opened.get_tensor(name)
        rows.add(len(table_VD))
        if not table_VD.is_floating_point():
            raise ModelError(f"chat.new_tokens: {name} is kept in {table_VD.dtype}", "use the model in 16 bits")
        grown[name] = _with_rows(table_VD, first, end)
    if len(rows) != 1:
        raise ModelError(f"{base}: the tables have {sorted(rows)} rows, expected as many each", "this model cannot be extended")
    needed, free = sum(table.nbytes for table in grown.values()), free_bytes(directory)
    if needed > free:
        raise ModelError(f"chat.new_tokens: the tables take {needed:,} bytes in {directory}, {free:,} are free", "make room")
    for file, name in linked.items():
        (directory / name).symlink_to(file.resolve())
    save_file(grown, directory / GROWN, metadata={"format": "pt"})
    write_json(
        directory / INDEX,
        {"metadata": {}, "weight_map": {name: GROWN if name in grown else linked[file] for name, file in files.items()}},
    )
    before = rows.pop()
    return before, max(end, before)


def _with_rows(table: Tensor, first: int, end: int) -> Tensor:
    """A table whose rows from ``first`` to ``end`` are the mean of those before, in its dtype; spare ones behind stay.

    Some published tokenizers have a token or two (of images) more than their text model has rows; these get the mean too.
    """
    used = table[:first]
    mean = used.mean(0, dtype=torch.promote_types(table.dtype, torch.float32)).to(table.dtype)
    return torch.cat([used, mean.expand(end - len(used), *table.shape[1:]), table[end:]])


def _write_beside(
    base: Path,
    directory: Path,
    tokenizer: _TokenizerFile,
    new: Sequence[NewToken],
    first: int,
    before: int,
    after: int,
) -> None:
    """Configuration and tokenizer with the new tokens, and everything else as it is."""
    left = {"tokenizer.json", "config.json", "tokenizer_config.json", INDEX}
    for file in base.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model") and file.name not in left:
            shutil.copy(file, directory / file.name)
    entries: dict[int, _AddedToken] = {}
    for index, token in enumerate(new, start=first):
        entries[index] = {
            "content": token.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token.special,
        }
    added = [*tokenizer["added_tokens"], *({"id": index, **entry} for index, entry in entries.items())]
    write_json(directory / "tokenizer.json", {**tokenizer, "added_tokens": added})
    settings = base / "tokenizer_config.json"
    facts: _TokenizerSettings = read_json(settings) if settings.exists() else {}
    if "added_tokens_decoder" in facts:
        facts["added_tokens_decoder"] |= {str(index): entry for index, entry in entries.items()}
    if words := [token.text for token in new if not token.special]:
        facts["text_tokens"] = sorted({*facts.get("text_tokens", ()), *words})
    write_json(directory / settings.name, facts)
    write_json(directory / "config.json", _resized(read_json(base / "config.json"), before, after))


def _resized(config: Json, before: int, after: int) -> Json:
    """A configuration for another number of rows, of the text model where there is one inside."""
    sized = {**config, "vocab_size": after} if config.get("vocab_size") == before else dict(config)
    if isinstance(inner := config.get("text_config"), dict):
        sized["text_config"] = _resized(inner, before, after)
    return sized
