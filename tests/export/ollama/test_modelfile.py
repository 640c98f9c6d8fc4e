"""A Modelfile is read back as Ollama reads it, and its template is run against Jinja on conversations of all kinds."""

import importlib.util
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tunesmith.chat.frozen_date import freeze_date
from tunesmith.chat.render import Renderer, with_system
from tunesmith.chat.template_choice import with_thinking
from tunesmith.errors import ExportError
from tunesmith.export.companions import stop_ids
from tunesmith.export.ollama import modelfile as ollama
from tunesmith.export.ollama.go_template import constant, execute, values
from tunesmith.export.ollama.modelfile import ollama_template, quoted, stop_texts, write_modelfile

sys.path.insert(0, str(Path(__file__).parents[2] / "chat"))
from families import FAMILIES, make

TRL = importlib.util.find_spec("trl")


def published(name):
    assert TRL is not None and TRL.submodule_search_locations
    return (Path(TRL.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def parsed(text):
    """Commands of a Modelfile: Ollama's reader, rune by rune (parser/parser.go). No comment stands within a value."""
    commands, rest = [], text
    while rest := rest.lstrip():
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        name, rest = rest.split(" ", 1)
        if name == "PARAMETER":
            name, rest = rest.split(" ", 1)
        kept = ""
        for place, rune in enumerate(rest):
            opened = kept.strip()
            if opened.startswith('"""'):
                ended = len(opened) >= 6 and opened.endswith('"""')
            else:
                ended = not opened.startswith('"') or (len(opened) >= 2 and opened.endswith('"'))
            if rune in " \t\r\n" and ended:
                rest = rest[place:]
                break
            if rune in "\t\r\n" or rune.isprintable():
                kept += rune
        commands.append((name, kept.strip().removeprefix('"""').removesuffix('"""')))
    return commands


@pytest.fixture(scope="module")
def any_tokenizer(tokenizer_dir):
    return make("llama3", tokenizer_dir)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_modelfile_of_each_family_says_what_the_renderer_trained(name, tokenizer_dir, tmp_path):
    tokenizer = make(name, tokenizer_dir)
    renderer = Renderer(tokenizer, enable_thinking=False if name == "qwen3" else None)
    system = 'Answer as JSON, with "quotes" and {{ braces }}.\n\n  Two lines.'
    bos = tokenizer.bos_token
    added = ollama.adds_bos(tmp_path / "none", tokenizer)
    stops = stop_texts(tokenizer, renderer.stop_ids)
    write_modelfile(tmp_path / "Modelfile", "./m-Q4_K_M.gguf", renderer.template, tokenizer, system, stops, 4096)
    commands = parsed((tmp_path / "Modelfile").read_text())
    assert [name for name, _ in commands[:3]] == ["FROM", "TEMPLATE", "SYSTEM"]
    found = dict(commands)
    assert found["FROM"] == "./m-Q4_K_M.gguf" and found["SYSTEM"] == system and found["num_ctx"] == "4096"
    assert [value for name, value in commands if name == "stop"] == stops
    assert set(tokenizer.convert_tokens_to_ids(stops)) == set(renderer.stop_ids)
    assert (found["temperature"], found["repeat_penalty"]) == ("0", "1")
    asked = turns(("user", "What?"), ("assistant", "That."), ("user", "Why? é\n"))
    for conversation in (asked, asked[:1], with_system(asked, system)):
        written = execute(found["TEMPLATE"], values(conversation))
        assert (str(bos) if added else "") + written == renderer.text(conversation, generate=True)


OFFICIAL = {
    "expressed": "cohere gemma gemma3 gemma4 gemma4_v2 gemma4_v3 gemma4_v4 gemma4_v5 lfm2 llama3 llama3_1 phi3 phi3_5 qwen2_5 "
    "qwen3_5_nothink qwen3_instruct_2507 qwen3_vl",
    "thoughts of earlier answers": "qwen3 qwen3_5_think deepseek_r1_distill lfm2_2_5",
    "the present date": "llama3_2 gptoss",
    "of the turns user": "idefics3 smolvlm",
    "' \\n edge": "nemotron_3_nano",
    "user ''": "glm4moe cohere2",
}


@pytest.mark.parametrize(("why", "name"), [(why, name) for why, names in OFFICIAL.items() for name in names.split()])
def test_official_templates_are_expressed_or_refused_by_name(why, name, any_tokenizer):
    if why == "expressed":
        assert ollama_template(published(name), any_tokenizer, adds_bos=False)
        return
    with pytest.raises(ExportError) as raised:
        ollama_template(published(name), any_tokenizer, adds_bos=False)
    assert why.replace("thoughts of earlier answers", "<think>") in raised.value.message


def test_an_answer_that_was_begun_is_continued(any_tokenizer):
    template = with_thinking(published("qwen3"), False)
    written = ollama_template(template, any_tokenizer, adds_bos=False)
    asked = turns(("system", "s"), ("user", "a"))
    prompt = any_tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("</think>\n\n")  # what an earlier answer does not have before it
    assert execute(written, values([*asked, *turns(("assistant", "Beg"))])) == prompt + "Beg"


def test_orders_that_jinja_refuses_are_refused_or_lose_the_orphaned_answer(any_tokenizer):
    written = ollama_template(published("gemma3"), any_tokenizer, adds_bos=False)
    asked = turns(("user", "a"))
    orphan = turns(("assistant", "of a turn that no longer fits"))
    assert execute(written, values([*orphan, *asked])) == execute(written, values(asked))
    told = turns(("system", "s"))
    assert execute(written, values([*told, *orphan, *asked])) == execute(written, values([*told, *asked]))
    for refused in ([*asked, *told, *asked], turns(("tool", "x"))):
        with pytest.raises(ExportError, match="this chat template"):
            execute(written, values(refused))


def test_turns_of_one_role_are_joined_as_ollama_joins_them():
    joined = values(turns(("system", "a"), ("user", "b"), ("user", "c"), ("system", "d")))
    assert [turn["Content"] for turn in joined["Messages"]] == [b"a", b"b\n\nc", b"d"]
    assert joined["System"] == b"a\n\nd"


def test_trimming_equals_python_for_every_white_space_character(any_tokenizer):
    written = ollama_template(published("llama3"), any_tokenizer, adds_bos=False)
    spaces = [chr(code) for code in range(0x3100) if chr(code).isspace()]
    others = ["\x00", "\x08", "\x0e", "\x1b", "\u200b", "\u2060", "\ufeff", "\u00c2", "\u0080"]
    bare = execute(written, values(turns(("user", "x"))))
    for edge in (*spaces, *others, "".join(spaces)):
        text = f"{edge}{edge}x{edge}y{edge}"
        assert execute(written, values(turns(("user", text)))) == bare.replace("x<", f"{text.strip()}<")


def test_a_difference_names_the_conversation_and_both_texts(any_tokenizer):
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content | lower }}\n{% endfor %}[assistant]"
    with pytest.raises(ExportError) as raised:
        ollama_template(template, any_tokenizer, adds_bos=False)
    shown = raised.value.message
    assert "of the turns user" in shown
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content | replace('What', 'what') }}\n{% endfor %}[assistant]"
    with pytest.raises(ExportError) as raised:
        ollama_template(template, any_tokenizer, adds_bos=False)
    shown = raised.value.message
    assert "[user 'What is it?']" in shown and r"'[user] what is it?\n[assistant]'" in shown
    assert r"'[user] What is it?\n[assistant]'" in shown


def test_the_beginning_of_text_is_left_to_ollama_where_it_puts_it(any_tokenizer, tmp_path):
    template = published("llama3")
    once = execute(ollama_template(template, any_tokenizer, adds_bos=True), values(turns(("user", "a"))))
    twice = execute(ollama_template(template, any_tokenizer, adds_bos=False), values(turns(("user", "a"))))
    assert any_tokenizer.bos_token + once == twice
    with pytest.raises(ExportError, match="in front of every prompt"):
        ollama_template(published("qwen2_5"), any_tokenizer, adds_bos=True)


def test_the_gguf_decides_about_the_beginning_of_text(tiny_run, tokenizer):
    file = next(tiny_run.export.glob("*.gguf"))
    assert ollama.adds_bos(file, tokenizer) == ollama.adds_bos(file.with_name("missing"), tokenizer)


@pytest.mark.parametrize("text", ['three """ quotes', "a\u200bb", "non\u00a0breaking"])
def test_what_a_modelfile_cannot_hold_is_refused_by_name(text, any_tokenizer, tmp_path):
    with pytest.raises(ExportError, match="the system text"):
        write_modelfile(tmp_path / "Modelfile", "m.gguf", published("phi3"), any_tokenizer, text, ["<|end|>"], 4096)
    assert not (tmp_path / "Modelfile").exists()


@pytest.mark.parametrize("text", ['"', 'a "', '" a', 'say "" now', "two\nlines\n", " edge ", "tab\t", "# no comment"])
def test_a_value_is_read_back_as_it_was(text):
    assert parsed(f"SYSTEM {quoted(text, 'text')}\nPARAMETER num_ctx 7\n") == [("SYSTEM", text), ("num_ctx", "7")]


def test_an_adapter_stands_on_its_base(any_tokenizer, tmp_path):
    target = tmp_path / "Modelfile.adapter"
    write_modelfile(target, "./base file.gguf", published("phi3"), any_tokenizer, None, ["<|end|>"], 64, "./m-lora.gguf")
    commands = parsed(target.read_text())
    assert commands[:2] == [("FROM", "./base file.gguf"), ("ADAPTER", "./m-lora.gguf")]
    assert not any(name == "SYSTEM" for name, _ in commands)


def test_constants_hold_any_text_in_printable_characters():
    text = '\x00\x1b\u2028\ufeff\U0001f642\U000e0001"\\\n\t\r{{ }} -}} `\'"""'
    written = constant(text)
    assert written.isprintable() and '"""' not in written
    assert execute(f"a {{{{- {written} -}}}} b", values([])) == f"a{text}b"


@pytest.mark.parametrize(
    "source", ["{{ .Messages }}", "{{ trim . }}", "{{ if true }}", "{{ `raw` }}", "{{ index $.System 9 }}"]
)
def test_an_action_outside_of_the_subset_is_an_error(source):
    with pytest.raises(ExportError):
        execute(source, values([]))


def test_every_stop_of_base_and_template_is_kept(tmp_path):
    assert stop_ids(tmp_path, [7, 3]) == [7, 3]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3, "top_k": 5}')
    assert stop_ids(tmp_path, [7, 3]) == [3, 7]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 3]}')
    assert stop_ids(tmp_path, [7, 3]) == [9, 3, 7]


@pytest.mark.parametrize("name", OFFICIAL["the present date"].split())
def test_a_date_that_is_frozen_is_expressed(name, any_tokenizer):
    frozen = freeze_date(published(name), datetime(2026, 11, 28))
    assert "2026" in ollama_template(frozen.text, any_tokenizer, adds_bos=False)
