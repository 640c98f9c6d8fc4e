"""Every published template at hand, on one small tokenizer with the control tokens that it writes, and what is true of each.

Unlike ``families.py``, which has each family's own pipeline, this asks of a template only what its text says: which control
tokens it writes (by their form), and whether it begins texts with one of its own. The templates are those that travel in TRL's
package, Mistral's beside this file and ours; those of TRL's own making (``_training``) and of image models are left out.
"""

import functools
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tunesmith.chat.render import Renderer
from tunesmith.chat.template_choice import SHIPPED
from tunesmith.errors import DataError, ModelError

CONTROL = re.compile(
    r"<[|｜][^<>\s'\"{}]*>|<[^<>\s'\"{}|｜/]+[|｜]>|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn)>|<eos>"
    r"|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
)
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>")
OF_IMAGES = ("idefics3", "llava_next", "smolvlm", "diffusion_gemma", "qwen2_5_vl", "qwen3_vl", "lfm2_2_5_vl")


@functools.cache
def texts() -> dict[str, str]:
    """Name of each template and its Jinja text."""
    trl = importlib.util.find_spec("trl")
    assert trl is not None and trl.submodule_search_locations, "TRL carries the templates: pip install -e '.[dev]'"
    files = sorted((Path(trl.submodule_search_locations[0]) / "chat_templates").glob("*.jinja"))
    known = {f.stem: f.read_text() for f in files if not f.stem.endswith("_training") and f.stem not in OF_IMAGES}
    known["mistral"] = (Path(__file__).parent / "templates" / "mistral.jinja").read_text()
    known |= {f"{file.stem} (ours)": file.read_text() for file in sorted(SHIPPED.glob("*.jinja"))}
    return dict(sorted(known.items()))


def make(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer with this template: bytes, and the template's control tokens."""
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


QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLED = [
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"},
    ANSWER,
]
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "a city"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "the weather", "parameters": CITY}}]


@dataclass(frozen=True)
class Facts:
    """What our renderer makes of a template.

    Attributes:
        refused: why it cannot be used at all; empty where it can.
        system, tools, reasoning: whether rows with these can be trained.
        thinks: how thinking is switched where it can be.
        opened: the tag that its prompt leaves open.
        chat, reasoned, called: documents of two exchanges, of two with reasoning, of a call with what follows; 0: refused.
        added: whether who asked may add a turn to a tool's result.
        date: whether it writes the day; ``default`` where only what llama.cpp would pass had to be fixed.
    """

    refused: str = ""
    system: bool = False
    tools: bool = False
    reasoning: bool = False
    thinks: bool | None = None
    opened: str = ""
    chat: int = 0
    reasoned: int = 0
    called: int = 0
    added: bool = False
    date: str = ""


@functools.cache
def renderer(name: str) -> Renderer:
    """The renderer of a template. Raises ModelError where it cannot be used."""
    return renderer_of(texts()[name])


def renderer_of(source: str) -> Renderer:
    """The renderer of a template's text. Raises ModelError where it cannot be used."""
    return Renderer(make(source))


@functools.cache
def facts(name: str) -> Facts:
    """Measured on conversations of a few letters."""
    try:
        return facts_of(renderer(name))
    except ModelError as error:
        return Facts(refused=error.message)


def facts_of(used: Renderer) -> Facts:
    """Measured with a renderer that there is."""

    def documents(messages, tools=None) -> int:
        try:
            return len(used.render(messages, tools).documents)
        except DataError:
            return 0

    thought = {**ANSWER, "reasoning_content": "why"}
    prompt, frozen = used.text([QUESTION], generate=True).rstrip(), used.frozen_template
    return Facts(
        system=documents([{"role": "system", "content": "s"}, QUESTION, ANSWER]) > 0,
        tools=documents(CALLED, TOOLS) > 0,
        reasoning=documents([QUESTION, thought]) > 0,
        thinks=used.enable_thinking,
        opened="<think>" if prompt.endswith("<think>") else "",
        chat=documents([QUESTION, ANSWER] * 2),
        reasoned=documents([QUESTION, thought] * 2),
        called=documents(CALLED, TOOLS),
        added=documents([*CALLED[:-1], QUESTION, CALLED[-1]], TOOLS) > 0,
        date="" if frozen is None else frozen.date or "default",
    )
