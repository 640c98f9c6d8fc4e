"""Every published template that travels in TRL's package, on one small tokenizer with the control tokens that it writes.

Unlike ``families.py``, which has each family's own pipeline, this asks of a template only what its text says: which control
tokens it writes (by their form), and whether it begins texts with one of its own. Templates of TRL's own making (``_training``)
and of image models that cannot be used without their processor are left out.
"""

import functools
import importlib.util
import json
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

CONTROL = re.compile(
    r"<[|｜][^<>\s'\"{}]*>|<[^<>\s'\"{}|｜/]+[|｜]>|</?(?:think|tool_call|tool_response|tools|start_of_turn|end_of_turn)>|<eos>"
)
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>")
OF_IMAGES = ("idefics3", "llava_next", "smolvlm", "diffusion_gemma", "qwen2_5_vl", "qwen3_vl", "lfm2_2_5_vl")


@functools.cache
def texts() -> dict[str, str]:
    """Name of each template and its Jinja text."""
    trl = importlib.util.find_spec("trl")
    assert trl is not None and trl.submodule_search_locations, "TRL carries the templates: pip install -e '.[dev]'"
    files = sorted((Path(trl.submodule_search_locations[0]) / "chat_templates").glob("*.jinja"))
    return {f.stem: f.read_text() for f in files if not f.stem.endswith("_training") and f.stem not in OF_IMAGES}


def make(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the template of this name: bytes, and the template's control tokens."""
    source = texts()[name]
    control = list(dict.fromkeys(CONTROL.findall(source)))
    control += [token for token in ("</think>", "<think>") if "<think>" in control and token not in control]
    if "<|channel|>" in control:
        control += [token for token in ("<|return|>", "<|call|>") if token not in control]
    ends = [end for end in ENDS if end in control]
    eos = ends[0] if ends and "eos_token" not in source else "</s>"
    bos = "<s>" if "bos_token" in source else None
    control += [token for token in (eos, bos) if token is not None and token not in control]
    tokenizer = Tokenizer.from_str(_bytes())
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    made.chat_template = source
    return made


@functools.cache
def _bytes() -> str:
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {letter: n for n, letter in enumerate(letters)}, "merges": []}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "post_processor": None,
            "truncation": None,
            "padding": None,
            "model": model,
        }
    )
