"""Split rows into train, dev and test, by content and for good.

Rows whose prompt is the same up to case and white space form a group, and a group never straddles the split: a test
prompt that also stands in train measures memory, not skill. A group's part follows from a hash of its prompt and the
seed alone, so the split is the same on every machine, independent of the order of the file, and rows that are added
later move no old row. The price: part sizes are only about the fractions asked for.

The test part is sealed: nothing is chosen on it. Demonstrations come from train, choices are made on dev.
"""

import hashlib

from tunesmith.data.read import Row
from tunesmith.errors import DataError

MIN_ROWS = 10
PARTS = ("train", "dev", "test")


def prompt_key(row: Row) -> str:
    """What makes two rows the same question: every turn but the answer, up to case and white space."""
    turns = (f"{m['role']}: {' '.join(m['content'].split())}" for m in row.messages[:-1])
    return "\n".join(turns).casefold()


def split_rows(rows: list[Row], test_fraction: float, dev_fraction: float, seed: int) -> dict[str, list[Row]]:
    """Assign every row to train, dev or test.

    Returns:
        The three parts, each in the order of the file.

    Raises:
        DataError: fewer than 10 rows, or a part that stays empty.
    """
    if len(rows) < MIN_ROWS:
        raise DataError(
            f"{len(rows)} rows cannot be split into train, dev and test (at least {MIN_ROWS} are needed)",
            "collect more; a verdict usually takes some hundreds",
        )
    parts: dict[str, list[Row]] = {part: [] for part in PARTS}
    for row in rows:
        digest = hashlib.sha256(f"{seed}\n{prompt_key(row)}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        part = "test" if place < test_fraction else "dev" if place < test_fraction + dev_fraction else "train"
        parts[part].append(row)
    for part, members in parts.items():
        if not members:
            raise DataError(
                f"{len(rows)} rows with {len({prompt_key(r) for r in rows})} distinct prompts leave the {part} part empty",
                "collect more rows, or raise data.test_fraction or data.dev_fraction",
            )
    return parts


def repeated_prompts(rows: list[Row]) -> int:
    """Number of rows whose prompt an earlier row already has."""
    return len(rows) - len({prompt_key(row) for row in rows})
