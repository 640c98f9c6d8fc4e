"""Every parser that meets a stranger's bytes: honest files to begin with, and how each is read.

Not here, because nothing of ours reads one: a Modelfile, which is written and never read.
"""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shared import ROOT, make_tokenizer, write_recipe
from tunesmith.messages import Message

CASES = ROOT / "tests" / "data" / "cases"
LARGEST = 100_000  # bytes of an honest file


@dataclass(frozen=True, kw_only=True)
class Parser:
    """One of them.

    Attributes:
        name: of the file that it is given.
        seeds: honest files, made in a folder where they have to be.
        parse: reads the file; what else it needs lies beside it.
        prepare: puts that there, once.
        words: that its files are made of.
        warms_up: whether it may be called before the children are forked: it leaves no threads.
    """

    name: str
    seeds: Callable[[Path], list[bytes]]
    parse: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    words: tuple[bytes, ...] = ()
    warms_up: bool = True


def _cases(pattern: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        return [raw for path in sorted(CASES.rglob(pattern)) if len(raw := path.read_bytes()) < LARGEST]

    return seeds


def _rows(path: Path) -> None:
    from tunesmith.data.read import Reader

    for _ in Reader(str(path)).batches():
        pass


def _gguf_seeds(folder: Path) -> list[bytes]:
    from checkpoints.prescan_files import honest_gguf

    return [honest_gguf(folder / "honest.gguf").read_bytes()]


def _gguf(path: Path) -> None:
    from tunesmith.checkpoints.gguf_reader import GgufReader

    reader = GgufReader(path)
    for field in reader.fields.values():
        field.contents()


def _safetensors_seeds(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3, 5), "b.c": torch.ones(2, dtype=torch.bfloat16)}, folder / "honest", {"format": "pt"})
    return [(folder / "honest").read_bytes()]


def _safetensors(path: Path) -> None:
    from safetensors.torch import load_file

    from tunesmith.checkpoints.prescan import check_safetensors, read_header

    read_header(path)
    check_safetensors(path)
    load_file(path)


ADAPTER = {
    **{
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8.0,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    },
    **{
        "base_model_name_or_path": "x",
        "task_type": "CAUSAL_LM",
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    },
    **{"rank_pattern": {"q_proj": 8}, "alpha_pattern": {}, "init_lora_weights": True, "trainable_token_indices": None},
    **{"target_parameters": None, "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None},
}
MLX = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0, "keys": ["a"]}}


def _adapter(path: Path) -> None:
    from tunesmith.errors import ModelError
    from tunesmith.models.adapter import read_adapter
    from tunesmith.models.peer_adapter import tool_of
    from tunesmith.recipe.adapter import lora_of, read_adapter_config, read_lora, words_of_start

    lora, config = read_lora(path.parent), read_adapter_config(path.parent)
    lora_of("model.layers.0.self_attn.q_proj", lora, config)
    list(words_of_start(lora, path.parent))
    tool_of(path.parent)
    try:
        read_adapter(path.parent)
    except ModelError as error:
        assert error.hint


def _mlx(path: Path) -> None:
    from tunesmith.models.peer_adapter import peft_form

    shutil.rmtree(path.parent / "as_peft", ignore_errors=True)
    (path.parent / "as_peft").mkdir()
    peft_form(path.parent, path.parent / "as_peft")


def _tensors_of_mlx(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = "model.layers.0.self_attn.q_proj.lora_{}"
    save_file({name.format("a"): torch.ones(8, 8), name.format("b"): torch.ones(8, 8)}, folder / "adapters.safetensors")


def _tensors_of_an_adapter(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file({name.format("A"): torch.ones(4, 8), name.format("B"): torch.ones(8, 4)}, folder / "adapter_model.safetensors")


def _records() -> list[bytes]:
    from tunesmith.rundir.records.stages import FileState, StageRecord, Stages
    from tunesmith.rundir.records.training import CheckpointState, DevLoss

    state = CheckpointState(
        **{"inputs": "a" * 64, "step": 3, "dev_losses": (DevLoss(step=0, dev_loss=1.5), DevLoss(step=3, dev_loss=1.0))},
        **{"tokens": 100, "seconds": 1.0, "computed_on": ("cpu, 1 thread",), "spikes": (), "sha256": {"a": "b"}},
    )
    known = FileState(sha256="a" * 64, bytes=3, mtime_ns=1, ctime_ns=1)
    record = StageRecord(inputs={"seed": 1}, outputs={"a": known}, began="2026-01-01", seconds=1.0, peak_bytes=1)
    return [json.dumps(one.to_json()).encode() for one in (state, Stages(stages={"data": record}))]


def _checkpoint(path: Path) -> None:
    from tunesmith.errors import RunError
    from tunesmith.rundir.events import read_events
    from tunesmith.rundir.ledger import Ledger
    from tunesmith.rundir.records.manifest import Manifest
    from tunesmith.rundir.records.stages import Stages
    from tunesmith.rundir.records.training import CheckpointState

    for read in (CheckpointState.read, Stages.read, Manifest.read, read_events):
        try:
            read(path)
        except RunError as error:
            assert error.hint
    shutil.copy(path, path.with_suffix(".jsonl"))
    from tunesmith.rundir.ledger import part_of

    Ledger(path.parent).find(part_of([]))


def _recipe_seeds(folder: Path) -> list[bytes]:
    shipped = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    return [write_recipe(folder, folder / "model").read_bytes(), *shipped]


def _recipe(path: Path) -> None:
    from tunesmith.recipe import dump_recipe, load_recipe

    dump_recipe(load_recipe(path))


def _configs(folder: Path) -> list[bytes]:
    peers = ROOT / "tests" / "peers"
    axolotl = (
        b"base_model: x\ndatasets:\n  - path: a.jsonl\n    type: chat_template\nlora_r: 8\nlearning_rate: 1e-4\nnum_epochs: 2\n"
    )
    factory = b"model_name_or_path: x\nstage: sft\nfinetuning_type: lora\ndataset: a\ncutoff_len: 512\nlora_rank: 8\n"
    openai = json.dumps(
        {"training_file": "a", "model": "x", "hyperparameters": {"n_epochs": 3}, "method": {"type": "supervised"}}
    )
    kept = [path.read_bytes() for path in sorted(peers.rglob("*")) if path.suffix in (".yaml", ".yml", ".json", ".ipynb")]
    return [axolotl, factory, openai.encode(), *(raw for raw in kept if len(raw) < LARGEST)]


SCRIPT = """from unsloth import FastLanguageModel
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

model, tokenizer = FastLanguageModel.from_pretrained("x", max_seq_length=2048, load_in_4bit=True)
model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"])
data = load_dataset("json", data_files="rows.jsonl", split="train")
arguments = SFTConfig(per_device_train_batch_size=2, learning_rate=2e-4, max_steps=60, output_dir="out")
trainer = SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=data, args=arguments)
trainer.train()
"""


def _notebooks(folder: Path) -> list[bytes]:
    cells = [{"cell_type": "code", "source": [SCRIPT], "outputs": [], "metadata": {}, "execution_count": None}]
    return [json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()]


def _config(path: Path) -> None:
    from tunesmith.pipeline.import_config import Wishes, import_config

    (path.parent / "out.yaml").unlink(missing_ok=True)
    import_config(path, Wishes(out=path.parent / "out.yaml"))


BASE = {
    **{
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    **{"max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "torch_dtype": "bfloat16", "bos_token_id": 1},
    **{"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "eos_token_id": [2, 3], "hidden_act": "silu"},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
}


def _base(path: Path) -> None:
    from tunesmith.checkpoints.check_base import check_base
    from tunesmith.checkpoints.facts import base_facts
    from tunesmith.checkpoints.hf import read_config
    from tunesmith.pipeline.plan import plan
    from tunesmith.recipe import load_recipe

    check_base(load_recipe(write_recipe(path.parent, path.parent)), base_facts(path.parent))
    plan(str(path.parent), None, None, None)
    read_config(path.parent)


def _tensors_of_a_base(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    names = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
    save_file({name: torch.ones(64, 64) for name in names}, folder / "model.safetensors")


@cache
def _tokenizer_folder() -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="chaos-tokenizer-"))
    make_tokenizer(folder)
    return folder


@cache
def _tokenizer():
    from tunesmith.models.load import load_tokenizer

    return load_tokenizer(_tokenizer_folder())


def _template_seeds(folder: Path) -> list[bytes]:
    shipped = [*(ROOT / "src/tunesmith/chat/templates").glob("*.jinja"), *(ROOT / "tests/chat/templates").glob("*.jinja")]
    own = str(_tokenizer().chat_template).encode()
    from test_template_limits import GREEDY

    return [own, own, *(path.read_bytes() for path in sorted(shipped)), *(source.encode() for source in GREEDY.values())]


def _template(path: Path) -> None:
    from tunesmith.chat.render import Renderer
    from tunesmith.chat.template_choice import template_text

    renderer = Renderer(_tokenizer(), template_text(path))
    answer: Message = {"role": "assistant", "content": "b"}
    renderer.render([{"role": "system", "content": "s"}, {"role": "user", "content": "<|im_end|> a"}, answer])


def _tokenizer_parse(path: Path) -> None:
    from tunesmith.models.load import load_tokenizer

    load_tokenizer(path.parent)


def _tokenizer_seeds(folder: Path) -> list[bytes]:
    whole = json.loads((_tokenizer_folder() / "tokenizer.json").read_text())
    model = whole["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < 400}
    model["merges"] = [pair for pair in model["merges"] if all(part in model["vocab"] for part in (*pair, "".join(pair)))]
    return [json.dumps(whole).encode()]


def _http_seeds(folder: Path) -> list[bytes]:
    ask = {"model": "base", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}], "n": 2}
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"enum": [1]}}}},
    }
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    used = {"role": "assistant", "content": None, "tool_calls": [call]}
    bodies = [
        {
            **ask,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 5,
            "stop": ["a"],
            "seed": 1,
            "logprobs": True,
            "top_logprobs": 2,
        },
        {**ask, "tools": [tool], "tool_choice": "auto", "stream": True, "stream_options": {"include_usage": True}},
        {**ask, "response_format": schema, "user": "u", "logit_bias": {"5": 1}, "metadata": {"a": "b"}},
        {"model": "base", "messages": [*ask["messages"], used, {"role": "tool", "tool_call_id": "c", "content": "1"}]},
        {"model": "base", "prompt": ["a", "b"], "echo": True, "logprobs": 1, "max_tokens": 1, "suffix": None},
        {"model": "base", "prompt": [[1, 2], [3]], "best_of": 1, "frequency_penalty": 0.1},
    ]
    return [json.dumps(body).encode() for body in bodies]


@cache
def _served():
    from serve.fake_engine import served
    from tunesmith.chat.render import Renderer

    return served(Renderer(_tokenizer()))


def _http(path: Path) -> None:
    from tunesmith.serve.api_error import ApiError
    from tunesmith.serve.body import fields_of
    from tunesmith.serve.request import chat_request, text_request

    for read in (chat_request, text_request):
        try:
            body = fields_of(path.read_bytes())
            body.text("model")
            read(body, _served(), 4)
        except ApiError as error:
            assert 400 <= error.status < 500, error


PARSERS = {
    "jsonl": Parser(
        name="a.jsonl",
        seeds=_cases("*.jsonl"),
        parse=_rows,
        warms_up=False,
        words=(b'"messages"', b'"role"', b'"content"', b'"tools"'),
    ),
    "json": Parser(name="a.json", seeds=_cases("*.json"), parse=_rows, warms_up=False),
    "csv": Parser(
        name="a.csv",
        seeds=_cases("*.csv"),
        parse=_rows,
        warms_up=False,
        words=(b'"",""', b";", b"\t", b"\r", b"prompt,completion\n"),
    ),
    "parquet": Parser(name="a.parquet", seeds=_cases("*.parquet"), parse=_rows, warms_up=False, words=(b"PAR1",)),
    "xlsx": Parser(name="a.xlsx", seeds=_cases("*.xlsx"), parse=_rows, warms_up=False, words=(b"PK\x03\x04", b"PK\x01\x02")),
    "gzip": Parser(
        name="a.jsonl.gz", seeds=lambda folder: [gzip.compress(raw) for raw in _cases("*.jsonl")(folder)], parse=_rows
    ),
    "gguf": Parser(name="a.gguf", seeds=_gguf_seeds, parse=_gguf, words=(b"GGUF", b"tokenizer.ggml.tokens")),
    "safetensors": Parser(name="a.safetensors", seeds=_safetensors_seeds, parse=_safetensors, words=(b'"dtype"', b'"shape"')),
    "adapter": Parser(
        name="adapter_config.json",
        seeds=lambda folder: [json.dumps(ADAPTER).encode()],
        parse=_adapter,
        prepare=_tensors_of_an_adapter,
    ),
    "mlx": Parser(
        name="adapter_config.json",
        seeds=lambda folder: [json.dumps(MLX).encode()],
        parse=_mlx,
        prepare=_tensors_of_mlx,
    ),
    "checkpoint": Parser(name="state.json", seeds=lambda folder: _records(), parse=_checkpoint),
    "recipe": Parser(name="a.yaml", seeds=_recipe_seeds, parse=_recipe, words=(b"model:", b"data:", b"train:", b"  - ", b": ")),
    "config": Parser(name="a.yaml", seeds=_configs, parse=_config, words=(b"datasets:", b"lora_r:", b": ", b"  - ")),
    "notebook": Parser(name="a.ipynb", seeds=_notebooks, parse=_config, words=(b"!pip", b"%", b"SFTConfig(", b"**", b"f'{x}'")),
    "script": Parser(
        name="a.py",
        seeds=lambda folder: [SCRIPT.encode()],
        parse=_config,
        words=(b"SFTConfig(", b"**{", b"lambda: ", b"(" * 200, b"-" * 3_000, b"1 if 1 else ", b"=", b"if True:\n    "),
    ),
    "base": Parser(
        name="config.json",
        seeds=lambda folder: [json.dumps({**BASE, "quantization_config": None}).encode(), json.dumps(BASE).encode()],
        parse=_base,
        prepare=_tensors_of_a_base,
        warms_up=False,  # a plan times the processor, with threads
    ),
    "tokenizer": Parser(name="tokenizer.json", seeds=_tokenizer_seeds, parse=_tokenizer_parse),
    "template": Parser(
        name="a.jinja",
        seeds=_template_seeds,
        parse=_template,
        words=(
            b"{{ ",
            b" }}",
            b"{% for x in ",
            b" %}",
            b"{% endfor %}",
            b"messages",
            b"range(99999)",
            b"| join",
            b" * 10**9",
            b"loop",
        ),
    ),
    "http": Parser(name="body", seeds=_http_seeds, parse=_http),
}
