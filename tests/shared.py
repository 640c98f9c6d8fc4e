"""Fixtures: the real tokenizer and template, a tiny random model that wears them, and one whole tiny run.

What is expensive is made once a session and shared by the workers under a file lock.
"""

import gc
import importlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, settings
from transformers import AutoModelForCausalLM

from llama_cpp_sources import RUN_IN_CHILD, VOCABULARY, conversion_by, run_here
from tunesmith import hardware
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_tokenizer import load_gguf_tokenizer
from tunesmith.checkpoints.resolve import find_model
from tunesmith.evaluate import probes
from tunesmith.models import precision
from tunesmith.models.load import load_tokenizer
from tunesmith.parity import measure, prompts, reference
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import Recipe, TrainSettings, load_recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.check import CheckReport

parity = importlib.import_module("tunesmith.pipeline.parity")  # the name in tunesmith.pipeline is the function
ROOT = Path(__file__).resolve().parents[1]
GGUF = ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf"
# One thread, unless whoever looks for a test that depends on rounding sets another number: sums are then split elsewhere.
THREADS = int(os.environ.get("TUNESMITH_TEST_THREADS", "1"))
torch.set_num_threads(THREADS)
# Same examples on every run, and no verdict on a busy machine's speed: a red test means a wrong program.
settings.register_profile(
    "tunesmith", max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tunesmith")


COLOURS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]
THINGS = ["car", "house", "river", "bird", "table", "cloud", "door", "stone"]


def toy_rows() -> list[dict[str, Any]]:
    """64 rows: "a red car" -> {"colour": "red", "thing": "car"}."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"a {colour} {thing}"},
                {"role": "assistant", "content": json.dumps({"colour": colour, "thing": thing})},
            ]
        }
        for colour in COLOURS
        for thing in THINGS
    ]


def _shared(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory made once for all workers."""
    worker = tmp_path_factory.getbasetemp()
    base = worker.parent if worker.name.startswith("popen-") else worker
    target = base / name
    with FileLock(f"{target}.lock"):
        if not target.exists():
            temporary = base / f"{name}.making"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            make(temporary)
            temporary.rename(target)
    return target


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Garbage is collected once a module, without what was there before: the imports."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """llama.cpp with one thread: its threads spin at every barrier, and on cores that others use that takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "cpu_count", lambda: 1)
        patch.setattr(hardware, "physical_cores", lambda: 1)  # the workers have the cores; tests of ranks name their number
        yield


@pytest.fixture(scope="session", autouse=True)
def no_flush():
    """Nobody waits for the disk: no test pulls a plug, a killed process loses nothing, and a run flushes some 150 files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture
def talk(caplog):
    """A function: the lines that the product has logged since its last call."""
    caplog.set_level(logging.INFO, "tunesmith")

    def since() -> str:
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("tunesmith")]
        caplog.clear()
        return "\n".join(lines)

    return since


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory):
    """Where the session's runs are booked: no test writes the ledger of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data_home")))
        yield


@pytest.fixture(autouse=True)
def own_ledger(data_home, tmp_path_factory, monkeypatch):
    """A ledger for each test, since all of them ask the same few rows."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "ledgers" / uuid.uuid4().hex))


@pytest.fixture(scope="session", autouse=True)
def no_timed_choice():
    """What a recipe leaves open is computed in fp32, whichever of fp32 and bf16 this machine happens to multiply faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_faster", lambda directory: "fp32")
        yield


PARITY = [(parity, "DEV_PROMPTS", 2), (prompts, "LONG", 60), (parity, "DEV_ROWS", 2)]
PARITY += [(module, "NEW_TOKENS", 8) for module in (prompts, reference, measure)]
forgetting = importlib.import_module("tunesmith.pipeline.forgetting")
SMALLER = [(module, name) for module, name, _ in PARITY]
SMALLER += [(forgetting, "load_probes"), (hardware, "cpu_count"), (hardware, "physical_cores"), (precision, "_faster")]
WHOLE = [(module, name, getattr(module, name)) for module, name in SMALLER]  # as they are outside of the tests


@pytest.fixture(scope="session", autouse=True)
def small_parity():
    """Few prompts, rows and tokens; the end-to-end run on the real model takes ``WHOLE`` again, with all that it needs."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in PARITY:
            patch.setattr(*limit)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_probes():
    """A quarter of what a run is asked against forgetting; its kinds come in blocks, so every fourth."""

    def some(texts: Path | None) -> probes.Probes:
        whole = probes.load_probes(texts)
        return probes.Probes(whole.passages[::4], whole.prompts[::4], whole.questions[::4])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "load_probes", some)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_converter_child():
    """llama.cpp's converter runs in this process; ``conversion_by(RUN_IN_CHILD)`` is the way back."""
    with conversion_by(run_here):
        yield


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """SmolLM2's tokenizer with the first sixth of its vocabulary: byte pairs that stand behind it were merged last."""
    return _shared(tmp_path_factory, "tokenizer", make_tokenizer)


def make_tokenizer(directory: Path) -> None:
    """Write that tokenizer into a directory."""
    assert GGUF.exists(), f"{GGUF} is missing; run: make {GGUF.relative_to(ROOT)}"
    load_gguf_tokenizer(GGUF, GgufReader(GGUF), "llama").save_pretrained(directory)
    file = directory / "tokenizer.json"
    whole = json.loads(file.read_text())
    model = whole["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < VOCABULARY}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    file.write_text(json.dumps(whole))
    settings_file = directory / "tokenizer_config.json"  # of 49,152 tokens llama.cpp's converter knows it without a word
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"add_bos_token": False}))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, tokenizer_dir):
    """A two-layer Llama with SmolLM2's tokenizer and template, grouped-query attention, tied head.

    Random weights guess worse than a fair die (11.1 nats, ln V is 10.8), and no run starts from such a model; three steps
    on the toy rows bring it to 9.
    """

    return _shared(tmp_path_factory, "tiny", lambda directory: make_tiny(directory, tokenizer_dir))


def make_tiny(directory: Path, tokenizer_dir: Path) -> None:
    """Write that model into a directory."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    _learn(model, AutoTokenizer.from_pretrained(tokenizer_dir))
    model.save_pretrained(directory)
    for file in tokenizer_dir.iterdir():
        shutil.copy(file, directory / file.name)


def _learn(model: Any, tokenizer: Any) -> None:
    """Three steps of Adam over the toy rows, all weights and all tokens."""
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in toy_rows()]
    given = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    ids_NT, mask_NT = given["input_ids"], given["attention_mask"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    for step in range(3):
        rows = slice(step, None, 4)
        labels_BT = ids_NT[rows].masked_fill(mask_NT[rows] == 0, -100)
        model(input_ids=ids_NT[rows], attention_mask=mask_NT[rows], labels=labels_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory, tiny_dir):
    """The F16 GGUF of the tiny model, by llama.cpp's converter."""

    def make(directory: Path) -> None:
        from tunesmith.checkpoints.gguf_write.convert import convert

        convert(tiny_dir, directory / "tiny-F16.gguf")

    return _shared(tmp_path_factory, "tiny_gguf", make) / "tiny-F16.gguf"


@pytest.fixture(scope="session")
def tiny_lora(tmp_path_factory, tiny_dir):
    """A drawn adapter of the tiny model: its PEFT directory, with ``lora.gguf`` by llama.cpp's converter inside.

    In a child process, as users have it; the converter of models would not know the small vocabulary there.
    """

    def make(directory: Path) -> None:
        from tiny_families import adapted
        from tunesmith.models.adapter import save_adapter
        from tunesmith.models.load import load_model
        from tunesmith.recipe import Lora

        save_adapter(directory, adapted(load_model(tiny_dir, "fp32")), Lora(r=4, alpha=8), "base")
        arguments = [str(directory), "--base", str(tiny_dir), "--outtype", "f32"]
        RUN_IN_CHILD("convert_lora_to_gguf.py", arguments, directory / "lora.gguf")

    return _shared(tmp_path_factory, "tiny_lora", make)


@pytest.fixture
def tiny_model(tiny_dir):
    from tunesmith.models.load import load_model

    return load_model(tiny_dir, "fp32")


def with_own_head(tied: Path, directory: Path) -> Path:
    """The same model with a head that is another matrix than the embedding."""
    model = AutoModelForCausalLM.from_pretrained(tied)
    head = model.lm_head.weight.detach()
    model.lm_head.weight = torch.nn.Parameter(head + 0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))
    model.config.tie_word_embeddings = False
    model.save_pretrained(directory)
    for file in tied.iterdir():
        if not (directory / file.name).exists():
            shutil.copy(file, directory / file.name)
    return directory


def write_recipe(directory: Path, model: Path, changes: dict[str, Any] | None = None) -> Path:
    """A tiny recipe in ``directory``; ``changes`` are merged in, dotted keys reach into sections."""
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    schema = {"type": "object", "required": ["colour", "thing"], "additionalProperties": {"type": "string"}}
    (directory / "schema.json").write_text(json.dumps(schema))
    recipe: dict[str, Any] = {
        "model": str(model),
        "base": "fp32",
        "data": {"path": "rows.jsonl", "test_fraction": 0.25, "dev_fraction": 0.2},
        "task": {"metric": "json", "json_schema": "schema.json", "prompt": "Colour and thing, as JSON.", "max_new_tokens": 12},
        "lora": {"r": 4, "alpha": 8},
        "train": {"tokens_per_step": 256, "max_length": 128, "num_train_epochs": 1, "learning_rate": 0.002, "replay": 0.0},
        "evaluate": {"few_shot": {"k": [2], "draws": 2}, "batch_size": 8},
    }
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        place = recipe
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    path = directory / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train_settings(**keys: Any) -> TrainSettings:
    """Numbers for a training by these keys of the section ``train``."""
    return TrainSettings(**{"learning_rate": 1e-3, "tokens_per_step": 8192, "num_train_epochs": 1, **keys})


@pytest.fixture
def make_recipe(tmp_path, tiny_dir) -> Callable[..., Recipe]:
    """``make_recipe({"train.schedule": "linear"})`` -> resolved recipe."""

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        return load_recipe(write_recipe(tmp_path, tiny_dir, changes))

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_dir) -> RunDir:
    """Every stage on the tiny model, GGUF and llama.cpp included. To be read, not written."""

    def make(directory: Path) -> None:
        recipe = write_recipe(directory, tiny_dir)
        run = api.open_run(recipe, directory / "run")
        api.run(run)
        # The directory is renamed when it is whole; the resolved recipe holds absolute paths.
        run.recipe_file.write_text(run.recipe_file.read_text().replace("tiny_run.making", "tiny_run"))
        api.report(run)  # which shows the recipe

    return RunDir(_shared(tmp_path_factory, "tiny_run", make) / "run")


@pytest.fixture(scope="session")
def real_dir() -> Path:
    """SmolLM2-135M-Instruct, converted once and kept in the user's cache."""
    return find_model(str(GGUF))


def without_places(report: CheckReport) -> Any:
    """A report with ``row N`` for every ``line N``, and without the names of its source."""
    report = replace(report, source="", reading=replace(report.reading, files=()))
    return json.loads(re.sub(r"\bline (\d+)", r"row \1", json.dumps(report.to_json())))
