"""The published templates of the families, each on a small tokenizer with that family's control tokens and pipeline.

The templates are the official ones, as they travel in TRL's package; Mistral's is written from its published format.
Three pipelines stand for all: byte-level BPE (SmolLM2, Llama 3, Qwen; Qwen with NFC), and SentencePiece-like BPE with byte
fallback, with a space in front of every text (Mistral) and without (Gemma). The byte-level ones are the first tokens of
SmolLM2's vocabulary (reading the whole of it is most of a test's time); the other is trained here on a few sentences.
"""

import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# How Llama 3 and Qwen cut text before BPE (their published tokenizer.json): a run of line breaks is one piece.
LLAMA_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HERE = Path(__file__).parent / "templates"
BYTE_TOKENS = 4096  # control tokens, bytes, then the commonest merges


@dataclass(frozen=True)
class Family:
    """What a test needs to know of a template.

    Attributes:
        special, plain: its control tokens, flagged special in the tokenizer or not.
        tools: whether it has tool calls.
        moves_last: whether system text and tools stand before the last user turn, so that earlier turns cannot be taught.
    """

    template: str
    kind: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = ""
    tools: bool = False
    moves_last: bool = False


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>")
LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
GEMMA4_TOOLS = ("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
GEMMA4 = ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", *GEMMA4_TOOLS)
# Added tokens of Gemma that are not flagged special: runs of white space and HTML tags steer nothing, the others do.
ORDINARY = ("\n", "\n\n", "▁▁", "<b>")
GEMMA_PLAIN = (*ORDINARY, "<mask>", "<unused5>")
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]")

FAMILIES = {
    "chatml": Family("", "byte", CHATML, eos="<|im_end|>"),
    "llama3": Family("llama3", "byte", LLAMA, bos="<|begin_of_text|>", eos="<|eot_id|>"),
    "llama3.1": Family("llama3_1", "byte", LLAMA, bos="<|begin_of_text|>", eos="<|eot_id|>", tools=True),
    "qwen2.5": Family("qwen2_5", "byte-nfc", CHATML, QWEN_PLAIN, eos="<|im_end|>", tools=True),
    "qwen3": Family(
        "qwen3",
        "byte-nfc",
        CHATML,
        (*QWEN_PLAIN, "<think>", "</think>", "<tool_response>", "</tool_response>"),
        eos="<|im_end|>",
        tools=True,
    ),
    "gemma3": Family(
        "gemma3",
        "pieces",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        GEMMA_PLAIN,
        "<bos>",
        "<end_of_turn>",
    ),
    "gemma4": Family("gemma4_v5", "pieces", GEMMA4, GEMMA_PLAIN, "<bos>", "<turn|>", tools=True),
    "mistral": Family(
        "mistral", "pieces-prefix", (*MISTRAL, "[/TOOL_RESULTS]"), (), "<s>", "</s>", tools=True, moves_last=True
    ),
}


def make(name: str, smollm2: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, template included; ``smollm2`` is a directory with SmolLM2's tokenizer."""
    family = FAMILIES[name]
    if family.kind.startswith("byte"):
        description = json.loads((smollm2 / "tokenizer.json").read_text())
        description["added_tokens"] = [t for t in description["added_tokens"] if family.template == ""]
        if family.kind == "byte-nfc":
            description["normalizer"] = {"type": "NFC"}
        # The published vocabularies have every byte; SmolLM2's, as its GGUF carries it, lacks some.
        bpe = description["model"]
        vocabulary = bpe["vocab"] = {token: number for token, number in bpe["vocab"].items() if number < BYTE_TOKENS}
        bpe["merges"] = [pair for pair in bpe["merges"] if "".join(pair) in vocabulary]
        if family.template:
            letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
            for letter in letters:
                vocabulary.setdefault(letter, len(vocabulary))
        tokenizer = Tokenizer.from_str(json.dumps(description))
        if family.template:
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_CUT), "isolated"), byte_level])
    else:
        tokenizer = Tokenizer.from_str(_pieces(family.kind == "pieces-prefix"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in family.special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.plain])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=family.bos, eos_token=family.eos)
    made.chat_template = _template(family.template) if family.template else (smollm2 / "chat_template.jinja").read_text()
    return made


def _template(name: str) -> str:
    if (HERE / f"{name}.jinja").exists():
        return (HERE / f"{name}.jinja").read_text()
    trl = importlib.util.find_spec("trl")
    assert trl is not None and trl.submodule_search_locations, "TRL carries the templates: pip install -e '.[dev]'"
    return (Path(trl.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()


@functools.cache
def _pieces(prefix: bool) -> str:
    """A SentencePiece-like BPE: spaces as U+2581, bytes as fallback, and with ``prefix`` a space in front of each text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    sentence = (
        "user model system assistant the answer is a question of what and where in Rome Paris weather city name value call"
    )
    words = sentence.split()
    tokenizer.train_from_iterator([" ".join(words[i:] + words[:i]) + ".\n" for i in range(len(words))], trainer)
    # The trainer makes added tokens of what it is given; bytes are vocabulary only.
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] == "<unk>"]
    return json.dumps(description)
