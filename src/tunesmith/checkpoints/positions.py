"""A model with more positions than it was trained with: the same weights, another configuration.

A row that is longer than the model's positions can be trained on if these reach further. What decides how far they reach is the
rotary base (``rope_theta``): the slowest pair of a head should turn no further over the new length than it did over the old
one, so that no angle is new to the model, while neighbours stay as far apart as they were. That base is
``theta * (new / old) ^ (d / (d - 2))`` for d rotated features, and it is what ``rope_theta: auto`` takes.

What comes out is a directory in the cache whose ``config.json`` says the two numbers and whose other files are links. So it is
a model like any other: what trains, scores, merges and converts reads it without knowing, and the merged model and the GGUF say
the positions that were trained. Refused: handing two numbers to every loader (one that forgets them serves another model than
the one that was trained); position scaling by yarn or longrope, whose many numbers are part of how a model was pretrained.

Sources: the base by bloc97, "NTK-aware scaled RoPE" (2023), as given in Peng et al. 2023 (arXiv 2309.00071, section 3.1); names
of the numbers are transformers' (``max_position_embeddings``, ``rope_theta``).
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from tunesmith import hardware
from tunesmith.checkpoints.facts import POSITIONS, model_key
from tunesmith.checkpoints.names import read_settings
from tunesmith.errors import ModelError
from tunesmith.rundir import atomic_directory, fingerprint, read_json, write_json

logger = logging.getLogger(__name__)

LAYOUT = 1  # of the directory; another number makes it anew
TOKENIZER = "tokenizer_config.json"
PLAIN = ("default", None)


def with_positions(directory: Path, positions: int | None, rope_theta: float | str = "auto") -> Path:
    """The directory of the model with so many positions; the same one where none are asked for.

    Args:
        directory: of the model.
        positions: ``max_position_embeddings`` of a recipe.
        rope_theta: of a recipe: a rotary base, or ``auto``.

    Raises:
        ModelError: the model has as many already, or its positions are none that a rotary base alone makes longer.
    """
    if positions is None:
        return directory
    config = read_settings(directory)
    changed, before, after = longer(config, positions, rope_theta)
    key = fingerprint(LAYOUT, str(directory.absolute()), model_key(directory), changed)
    target = hardware.cache_dir() / "positions" / key[:16] / directory.name
    if not _is_whole(target):
        with atomic_directory(target) as staged:
            for file in directory.iterdir():
                if file.is_file() and file.name not in ("config.json", TOKENIZER):
                    (staged / file.name).symlink_to(file.resolve())
            write_json(staged / "config.json", changed)
            if (directory / TOKENIZER).exists():
                write_json(staged / TOKENIZER, _tokenizer(read_json(directory / TOKENIZER), positions))
    if target not in _said:
        _said.add(target)
        old = _positions(_text(config))[1]
        logger.info(
            f"model: {positions:,} positions in the place of {old:,}, rope_theta {after:,.0f} in the place of {before:,.0f}"
        )
    return target


_said: set[Path] = set()  # of this process


def positions_words(directory: Path) -> str:
    """The two numbers of a directory of ``with_positions``, as its configuration spells them.

    Raises:
        ModelError: no configuration there, or one that does not name them.
    """
    text = _text(read_settings(directory))
    name, positions = _positions(text)
    return f"`{name}` {positions} and `rope_theta` {_theta(text):.6g}"


def longer(
    config: Mapping[str, JsonValue], positions: int, rope_theta: float | str
) -> tuple[dict[str, JsonValue], float, float]:
    """A configuration with so many positions, and the rotary base before and after. A pure function.

    Args:
        config: a parsed ``config.json``; of a multimodal model its text part is changed.

    Raises:
        ModelError: see ``with_positions``.
    """
    text = _text(config)
    name, old = _positions(text)
    if positions <= old:
        raise ModelError(
            f"max_position_embeddings: {positions:,}, and {text.get('model_type')} has {old:,} positions already",
            "leave max_position_embeddings and rope_theta out; rows of that length can be trained as it is",
        )
    before = _theta(text)
    rotated = _rotated(text)
    after = before * (positions / old) ** (rotated / (rotated - 2)) if isinstance(rope_theta, str) else rope_theta
    changed: dict[str, JsonValue] = {**text, name: positions}
    if "rope_theta" in text:
        changed["rope_theta"] = after
    if isinstance(rope := text.get("rope_parameters"), dict):
        whole = rope.get("full_attention")
        theta: dict[str, JsonValue] = {"rope_theta": after}
        changed["rope_parameters"] = (
            {**rope, "full_attention": {**whole, **theta}} if isinstance(whole, dict) else {**rope, **theta}
        )
    whole_config: dict[str, JsonValue] = changed if text is config else {**config, "text_config": changed}
    return whole_config, before, after


def _text(config: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """The part that the text model is made from."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _positions(text: Mapping[str, JsonValue]) -> tuple[str, int]:
    """Positions of the model, and the key that says so."""
    for name in POSITIONS:
        if isinstance(positions := text.get(name), int):
            return name, positions
    raise ModelError(
        f"max_position_embeddings: the config.json of {text.get('model_type')} names no number of positions",
        "leave max_position_embeddings out of the recipe",
    )


def _rotary(text: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """What is said of the positions of layers that see everything."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    whole = rope.get("full_attention") if isinstance(rope, dict) else None
    return whole if isinstance(whole, dict) else rope if isinstance(rope, dict) else {}


def _rotated(text: Mapping[str, JsonValue]) -> int:
    """Features of a head that positions turn."""
    width, hidden, heads = (text.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if not isinstance(width, int):
        if not isinstance(hidden, int) or not isinstance(heads, int):
            raise ModelError(
                f"rope_theta: auto: the config.json of {text.get('model_type')} does not say how wide a head is",
                "name a rope_theta",
            )
        width = hidden // heads
    share = _rotary(text).get("partial_rotary_factor") or text.get("partial_rotary_factor")
    return int(width * share) if isinstance(share, int | float) else width


def _theta(text: Mapping[str, JsonValue]) -> float:
    """The rotary base, where it alone says how positions turn."""
    rope = _rotary(text)
    kind, theta = rope.get("rope_type", rope.get("type")), rope.get("rope_theta", text.get("rope_theta"))
    if kind not in PLAIN:
        raise ModelError(
            f"max_position_embeddings: positions of {text.get('model_type')} are scaled by {kind} already, and nobody "
            "trained a longer rotary base beside that",
            "leave max_position_embeddings out, and set train.max_length to what the model takes",
        )
    if not isinstance(theta, int | float):
        raise ModelError(
            f"max_position_embeddings: the config.json of {text.get('model_type')} names no rope_theta",
            "leave max_position_embeddings out of the recipe",
        )
    return float(theta)


def _is_whole(target: Path) -> bool:
    """Whether the directory is there and every link leads somewhere."""
    return target.is_dir() and all(file.exists() for file in target.iterdir())


def _tokenizer(settings: dict[str, JsonValue], positions: int) -> dict[str, JsonValue]:
    """The tokenizer's own limit goes up with the positions: engines serve the smaller of the two."""
    limit = settings.get("model_max_length")
    return settings | {"model_max_length": positions} if isinstance(limit, int) and limit < positions else settings
