"""The tokenizer of a GGUF file, split as its merges were learned.

A byte-level vocabulary is half of a tokenizer; the other half is the rule by which text is cut before merges are looked for.
A GGUF names that rule in ``tokenizer.ggml.pre``. transformers 5.23 knows those with one regular expression and gives every
other file GPT-2's rule in silence. For vocabularies that cut digits one by one the two agree on almost every text, and differ
on " ½" or on a digit of another script behind a space: other ids in training than in every engine that runs the export, and
than in the model's own pretraining. So the rule is set here, and a name that nobody knows is refused.

The class is looked up here too: ``AutoTokenizer`` would parse the file for its configuration, which takes 5 s for 49,152 tokens
and their merges, and the caller has it.

Source: ``src/llama-vocab.cpp`` of llama.cpp (build b10605), ``llm_tokenizer_bpe`` and the list of names; ``Digits`` and
``ByteLevel`` of the ``tokenizers`` library, which the ``tokenizer.json`` of these models names.
"""

import logging
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ModelError
from tunesmith.families import GGUF_GPT2_SPLIT, GGUF_SINGLE_DIGITS

logger = logging.getLogger(__name__)

BYTE_LEVEL = "gpt2"  # tokenizer.ggml.model of every byte-level vocabulary


def load_gguf_tokenizer(path: Path, reader: GgufReader, model_type: str) -> PreTrainedTokenizerBase:
    """The file's tokenizer.

    Args:
        reader: of the same file.
        model_type: of the file's configuration as transformers reads it.

    Raises:
        ModelError: a rule of splitting that is not known.
        OSError, ValueError, KeyError, TypeError: as transformers reads the file.
    """
    if TOKENIZER_MAPPING_NAMES.get(model_type) is None:
        tokenizer = TokenizersBackend.from_pretrained(str(path.parent), gguf_file=path.name)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, tokenizer_type=model_type)
    kind, rule = (reader.value(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != BYTE_LEVEL:
        return tokenizer
    if rule is None:
        logger.warning(f"{path}: does not say how its tokenizer splits text (tokenizer.ggml.pre); split as GPT-2 does")
        return tokenizer
    name = str(rule)
    if name in GGUF_SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    elif name not in GGUF_GPT2_SPLIT and name not in GGUF_PRE_TOKENIZER_SPLITS:
        raise ModelError(
            f"{path}: its tokenizer splits text by the rule {name!r}, which is not known here", "use the model's safetensors"
        )
    return tokenizer
