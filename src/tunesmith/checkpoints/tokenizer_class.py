"""The class that ``tokenizer_config.json`` names, in words that transformers 4 and 5 both know.

transformers 5 calls its one fast tokenizer ``TokenizersBackend`` and writes that name into every directory that it saves.
Version 4, which many engines still bring along, answers that no such class exists and reads nothing further. The same tokenizer
was called ``PreTrainedTokenizerFast`` there, and 5 still reads that name; so this is what our directories say.

Refused: a class by the model's family, which may split text by other rules than ``tokenizer.json``.

Source: transformers issue "Tokenizer class TokenizersBackend does not exist", and ``tokenization_auto.py`` of 5.23.
"""

import json
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.rundir import write_json

TEXT_TOKENS = "text_tokens"  # key of that file: added tokens that are text wherever they are written (checkpoints/grow.py)
NEW, OLD = "TokenizersBackend", "PreTrainedTokenizerFast"


def name_tokenizer_class(directory: Path) -> None:
    """Write the old name in the place of the new one; any other class stays.

    Raises:
        ModelError: ``tokenizer_config.json`` is no JSON object.
    """
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: cannot be read: {error}", "get the file again") from error
    if isinstance(settings, dict) and settings.get("tokenizer_class") == NEW:
        write_json(path, settings | {"tokenizer_class": OLD})
