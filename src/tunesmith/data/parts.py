"""Which part of a split rows are, where their file, its folder or their list says so by its name.

``train-00000-of-00002.parquet`` beside ``test-00000-of-00001.parquet``, folders ``train/`` and ``test/`` as
``save_to_disk`` writes them, one JSON object with lists of these names: somebody has split these rows, and a figure on
their test part is compared with others' figures on it. So they are never pooled in silence: a recipe says ``data.split:
given`` or ``drawn``. Names count as whole words (``sft_train.jsonl``, and not ``trainers.jsonl``), and only where there is
a train part and another one.
"""

import re
from collections.abc import Iterable, Sequence

WORDS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "eval": "dev"},
}
MOST_NAMED = 3


def part_of(name: str) -> str | None:
    """``train``, ``dev`` or ``test`` where a name says one of them."""
    parts = {WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in WORDS}
    return parts.pop() if len(parts) == 1 else None


def is_split(parts: Iterable[str | None]) -> bool:
    """Whether these are the parts of a split, and not a file that happens to have such a name."""
    named = {part for part in parts if part is not None}
    return "train" in named and len(named) > 1


def listed(named: Sequence[tuple[str | None, str]]) -> str:
    """Parts with the names of what holds them, for people."""
    texts: list[str] = []
    for part in ("train", "dev", "test", None):
        names = [name for other, name in named if other == part]
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            texts.append(f"{part or 'no part'} ({', '.join(names[:MOST_NAMED])}{more})")
    return ", ".join(texts)
