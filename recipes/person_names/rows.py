"""Rows of the name task: a person's name as it was typed, and its parts as JSON.

    python recipes/person_names/rows.py probablepeople-0.5.6.tar.gz rows.jsonl

The package (MIT) is read as the archive it is and never imported. It holds 2,898 names whose words were labelled by hand;
taken are those of at least two parts, each name once, where no part stands apart from itself (no two persons in one name).
"""

import json
import sys
import tarfile
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

MEMBER = "probablepeople-0.5.6/name_data/labeled/person_labeled.xml"


def main() -> None:
    """Read the archive, write JSONL."""
    archive, target = sys.argv[1:]
    with tarfile.open(archive) as packed:
        member = packed.extractfile(MEMBER)
        assert member is not None
        names = ElementTree.fromstring(member.read())
    seen: set[str] = set()
    with Path(target).open("w", encoding="utf-8") as file:
        for name in names:
            words = [(word.tag, (word.text or "").strip()) for word in name]
            parts = [(tag, " ".join(text for _, text in group)) for tag, group in groupby(words, key=lambda word: word[0])]
            text = " ".join(text for _, text in words)
            if len(parts) < 2 or len({tag for tag, _ in parts}) < len(parts) or text in seen:
                continue
            seen.add(text)
            answer = json.dumps(dict(parts), ensure_ascii=False)
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
