"""Walks models of real widths and few layers through all that a GPU does, on the device that is not there.

    PYTHONPATH=src:tests python -m gpu_path.walk OUT.json [--chips 80,90 [--of CASE,CASE]] [--sites] [CASE...]

A process of its own, without Triton's interpreter. Writes what was seen at each stage of each case; with ``--chips``, what the
compiler makes of every Triton kernel that was launched, or that the cases ``--of`` launched (``compiled.py``); with
``--sites``, from where the launches came. Of a checkpoint there are only names and shapes: weights have no memory.

A step is walked at two depths, so that a layer's share can be told from what a step costs once.
"""

import contextlib
import gc
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Gemma4UnifiedTextConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

import fake_cuda
import fake_graphs
from fake_cuda import WATCH, weightless
from gpu_path.compiled import compile_all
from tunesmith import hardware
from tunesmith.checkpoints.quantized.layout import Layout
from tunesmith.engines.decode import AHEAD, StopRule, greedy
from tunesmith.engines.score import Scorer
from tunesmith.errors import ModelError
from tunesmith.kernels import nf4
from tunesmith.kernels.triton import glu_forward
from tunesmith.models import nf4_load
from tunesmith.models.device import best_device
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_model
from tunesmith.models.placement import Placement
from tunesmith.models.precision import precision
from tunesmith.models.swap import add_lora
from tunesmith.models.whole_tables import add_whole_tables
from tunesmith.recipe import Lora, TrainSettings
from tunesmith.train import health
from tunesmith.train.documents import make_documents
from tunesmith.train.loop import train_steps

S, F = "sliding_attention", "full_attention"
QKV8: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
GEMMA4: dict[str, Any] = {"head_dim": 256, "global_head_dim": 512, "tie_word_embeddings": True, "vocab_size": 262144}
GEMMA4 |= {"final_logit_softcapping": 30.0}
WIDE: dict[str, Any] = {"hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16, "num_key_value_heads": 8}
LENGTHS = (700, 512, 300, 256, 160, 120)  # tokens of the documents of the pack: 2,048
TOKENS = sum(LENGTHS)
AVAILABLE = hardware.available_memory


def _config(kind: Any, **facts: Any) -> Any:
    return kind(**facts)


CONFIGS: dict[str, Callable[[int], Any]] = {  # by the number of layers, an even one
    "llama-8b": lambda n: _config(
        LlamaConfig,
        **QKV8,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=n,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
    "qwen3-8b": lambda n: _config(
        Qwen3Config,
        **QKV8,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=n,
        vocab_size=151936,
        tie_word_embeddings=False,
    ),
    "gemma3-12b": lambda n: _config(
        Gemma3TextConfig, **WIDE, num_hidden_layers=n, head_dim=256, layer_types=[S, F] * (n // 2), vocab_size=262208
    ),
    "gemma4-12b": lambda n: _config(
        Gemma4UnifiedTextConfig,
        **GEMMA4,
        **WIDE,
        num_hidden_layers=n,
        layer_types=[S, F] * (n // 2),
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=1024,
    ),
    "gemma4-e2b": lambda n: _config(
        Gemma4TextConfig,
        **{**GEMMA4, "vocab_size": 32768},
        hidden_size=1536,
        intermediate_size=6144,
        num_hidden_layers=n,
        layer_types=[S, F] * (n // 2),
        num_attention_heads=8,
        num_key_value_heads=1,
        num_kv_shared_layers=n // 2,
        hidden_size_per_layer_input=256,
        vocab_size_per_layer_input=32768,  # an eighth: this table lies in the memory of the host
        sliding_window=512,
        use_double_wide_mlp=True,
    ),
    "qwen3-moe": lambda n: _config(
        Qwen3MoeConfig,
        hidden_size=2048,
        moe_intermediate_size=768,
        intermediate_size=6144,
        num_hidden_layers=n,
        num_experts=16,
        num_experts_per_tok=8,
        **{**QKV8, "num_key_value_heads": 4},
        vocab_size=151936,
    ),
}


@dataclass(frozen=True)
class Case:
    """What is walked.

    Attributes:
        model: of ``CONFIGS``.
        whole: with health check, decoding and scoring; else a step alone.
        layers: of the smaller model; the other has twice as many.
        resident: how many of the first layers stay on the device.
        disk: whether the host has no room for the others.
        offload, tile: of ``train.offload`` and ``train.mlp_tile``.
        tokens: of the pack; other than 2,048, one document.
        tables: ``train.embedding_on`` and ``base_head``.
        trained: of ``lora.modules_to_save``.
        has_graphs: decoding is recorded; not where the host looks up rows of a table.
    """

    model: str
    r: int = 16
    dropout: float = 0.0
    policy: Any = "none"
    whole: bool = False
    capability: tuple[int, int] = (9, 0)
    layers: int = 2
    resident: Any = "all"
    disk: bool = False
    offload: Literal["none", "inputs", "attention"] = "none"
    tile: int = 0
    tokens: int = TOKENS
    tables: tuple[str, str] = ("device", "auto")
    trained: tuple[str, ...] = ()
    has_graphs: bool = True


CASES: dict[str, Case] = {
    "llama-8b": Case("llama-8b", whole=True),
    "llama-8b dropout": Case("llama-8b", dropout=0.05),
    "llama-8b layer": Case("llama-8b", policy="layer"),
    "llama-8b dropout layer": Case("llama-8b", dropout=0.05, policy="layer"),
    "llama-8b streamed": Case("llama-8b", dropout=0.05, policy="layer", layers=3, resident=0),
    "llama-8b from disk": Case("llama-8b", dropout=0.05, policy="layer", layers=3, resident=0, disk=True),
    "llama-8b offload": Case("llama-8b", policy="layer", offload="inputs"),
    "llama-8b known": Case("llama-8b", policy="layer", offload="attention", layers=4),
    "llama-8b long": Case("llama-8b", policy="layer", offload="inputs", tile=4096, tokens=32768),
    "llama-8b lean": Case("llama-8b", policy="layer", tables=("host", "int8"), whole=True, has_graphs=False),
    "llama-8b trained tables": Case("llama-8b", trained=("embed_tokens", "lm_head")),
    "llama-8b attention": Case("llama-8b", policy="attention"),
    "llama-8b mlp": Case("llama-8b", policy="mlp"),
    "llama-8b every second": Case("llama-8b", policy=2),
    "llama-8b r1": Case("llama-8b", r=1),
    "llama-8b r4": Case("llama-8b", r=4),
    "llama-8b r8": Case("llama-8b", r=8, dropout=0.05),
    "llama-8b r64": Case("llama-8b", r=64),
    "llama-8b fp16": Case("llama-8b", capability=(7, 5), dropout=0.05, whole=True),
    "qwen3-8b": Case("qwen3-8b", dropout=0.05, whole=True),
    "gemma3-12b": Case("gemma3-12b", dropout=0.05, whole=True),
    "gemma4-12b": Case("gemma4-12b", dropout=0.05, whole=True),
    "gemma4-e2b": Case("gemma4-e2b", dropout=0.05, whole=True, layers=4, has_graphs=False),
    "qwen3-moe": Case("qwen3-moe", whole=True),
}


class _Checkpoint:
    """In the place of ``Checkpoint``: tensors of the model's shapes without memory."""

    shapes: dict[str, torch.Size]

    def __init__(self, directory: Path, dense: bool = True):
        self.directory, self.stacks = directory, {}
        self.layout = Layout(scheme=None, tensors={}, files={})
        self.files = {name: (directory, name) for name in self.shapes}

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str) -> torch.Tensor:
        return weightless(self.shapes[name], torch.bfloat16)

    def read_parts(self, name: str, shape: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield name, self.read(name)


class _Steps:
    """Optimizer steps over the same documents again and again, as one pack."""

    epoch_ends = (100,)

    def __init__(self, documents: int):
        self._documents = tuple(range(documents))

    def __len__(self) -> int:
        return 100

    def __getitem__(self, step: int, /) -> tuple[int, list[tuple[int, ...]]]:
        return 0, [self._documents]


@contextlib.contextmanager
def _stored(config: Any) -> Iterator[Path]:
    """A model directory with a configuration and no weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tied = config.tie_word_embeddings
    _Checkpoint.shapes = {name: t.shape for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    nf4_load.Checkpoint = _Checkpoint  # type: ignore[assignment, misc]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        yield Path(folder)


def walk(case: Case) -> dict[str, Any]:
    """Figures of each stage."""
    depths = (case.layers, 2 * case.layers)
    parts = [partial(_trained, depth=depth) for depth in depths] + [_answers] * case.whole
    seen: dict[str, Any] = {}
    for part in parts:
        gc.collect()  # models are cycles
        depth = part.keywords["depth"] if isinstance(part, partial) else case.layers
        with fake_cuda.cuda(case.capability), _stored(CONFIGS[case.model](depth)) as folder:
            WATCH.reset()
            os.environ["XDG_CACHE_HOME"] = str(folder)  # of layers that are streamed
            compute = precision("nf4", "auto", folder)[1]
            hardware.available_memory = (lambda: 0) if case.disk else AVAILABLE
            embedding_on, base_head = case.tables
            placement = Placement(resident_layers=case.resident, embedding_on=embedding_on, base_head=base_head)
            seen = part(load_model(folder, compute, "nf4", best_device(), placement), case) | seen
    return seen


def _elsewhere(model: PreTrainedModel) -> list[str]:
    """Tensors that stayed on the host."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if not tensor.is_cuda]


def _trained(model: PreTrainedModel, case: Case, depth: int) -> dict[str, Any]:
    """Loading, health check, and the second step of a training: the first one fills what is made once."""
    seen: dict[str, Any] = {"load": WATCH.figures() | {"elsewhere": _elsewhere(model)}}
    checked = case.whole and depth == case.layers
    WATCH.reset()
    expected = health.stock_loss(model) if checked else 0.0
    layers = add_lora(model, Lora(r=case.r, alpha=32, dropout=case.dropout), 0)
    layers |= add_whole_tables(model, case.trained)
    seen["fuse"] = fuse(model).summary()
    if checked:
        try:
            health.refuse_other_loss(model, expected)
        except ModelError as error:  # numbers read off this device are constants: a derivative is never zero
            assert "depends on the documents" in str(error), error
        seen["health"] = WATCH.figures()
    lengths = LENGTHS if case.tokens == TOKENS else (case.tokens,)
    documents = make_documents([([7 + n] * length, [0] * (length - 40) + [1] * 40) for n, length in enumerate(lengths)])
    keys: dict[str, Any] = {"recompute": case.policy, "offload": case.offload, "mlp_tile": case.tile}
    keys |= {"tokens_per_step": case.tokens, "max_length": case.tokens}
    settings = TrainSettings(learning_rate=2e-4, num_train_epochs=1, **keys)
    steps = train_steps(model, layers, documents, _Steps(len(lengths)), settings, 0)  # type: ignore[arg-type]
    next(steps)
    WATCH.reset()
    next(steps)
    name = "step" if depth == case.layers else "deeper step"
    return seen | {name: WATCH.figures() | {"layers": depth, "resident": WATCH.live()}}


def _answers(model: PreTrainedModel, case: Case) -> dict[str, Any]:
    """An evaluation, which has adapters on stock modules: tokens one by one, and choices scored."""
    seen = {}
    add_lora(model, Lora(r=case.r, alpha=32, dropout=case.dropout), 0)
    model.eval()
    prompts = [[9] * 40 + [5 + n] * (20 + 7 * n) for n in range(6)]
    for tokens in (2, 3):
        WATCH.reset()
        greedy(model, prompts, StopRule(tokens, [0]), 6)
        seen[f"decode {tokens}"] = WATCH.figures() | {"layers": case.layers}
    if case.has_graphs:
        WATCH.reset()
        greedy(model, prompts, StopRule(1 + 3 * AHEAD, [0]), 6)
        seen["graph"] = WATCH.figures()
    WATCH.reset()
    Scorer(model).continuation_logprobs([([9] * 40 + [3 + n] * 20, [4 + m] * 5) for n in range(6) for m in range(3)])
    return seen | {"score": WATCH.figures()}


def quantised() -> dict[str, Any]:
    """One weight of four million numbers, as a loader quantises it."""
    with fake_cuda.cuda():
        weight = torch.empty(1024, 4096, dtype=torch.bfloat16, device="cuda")
        nf4.quantize_nf4(weight)  # fills the tables
        WATCH.reset()
        nf4.quantize_nf4(weight)
        return WATCH.figures()


def seen_by_the_device() -> dict[str, Any]:
    """What the device that is not there says of a few lines that do what our code must not."""
    with fake_cuda.cuda():
        WATCH.reset()
        before = WATCH.live()
        weight = torch.zeros(1000, 1000, device="cuda", requires_grad=True)
        torch.ones(1000, pin_memory=True)  # given back: who gets its address next is not pinned
        host = torch.ones(1000)
        found: dict[str, Any] = {}
        try:
            _ = weight @ host
        except RuntimeError as error:
            found["mixed"] = str(error)
        x = host.to("cuda")
        host.pin_memory().to("cuda", non_blocking=True)
        product = weight @ x
        total = product.sum()
        total.backward()
        float(total.detach())
        x[x > 0].cpu()
        assert weight.grad is not None
        return found | WATCH.figures() | {"grad": str(weight.grad.device), "kept": WATCH.live() - before}


def raced() -> list[int]:
    """How many races the device sees: a copy on another stream is read at once, then behind its event; then written over."""
    counts = []
    with fake_cuda.cuda():
        slot, side = torch.zeros(8, device="cuda"), torch.cuda.Stream()
        for is_awaited in (False, True):
            WATCH.reset()
            with torch.cuda.stream(side):
                slot.copy_(torch.ones(8), non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(side)
            if is_awaited:
                torch.cuda.current_stream().wait_event(ready)
            slot.sum()
            counts.append(len(WATCH.races))
            free = torch.cuda.Event()
            free.record()
            side.wait_event(free)
        slot.sum()
        WATCH.reset()
        with torch.cuda.stream(side):
            slot.copy_(torch.ones(8), non_blocking=True)
        return [*counts, len(WATCH.races)]


def raced_by_triton() -> list[int]:
    """The same of a kernel of ours on another stream: what it writes is read at once, what it reads is read, then written."""
    counts = []
    with fake_cuda.cuda():
        gate, up, product = (torch.zeros(8, 64, device="cuda") for _ in range(3))
        with torch.cuda.stream(torch.cuda.Stream()):
            glu_forward(gate, up, "silu", product)
        for use in (product.sum, gate.sum, gate.zero_):
            WATCH.reset()
            use()
            counts.append(len(WATCH.races))
    return counts


def recorded() -> dict[str, Any]:
    """Decoding of a tiny model with graphs: as it should be, and with each thing that may go wrong."""

    def wait(module: Any, _: Any, out: torch.Tensor) -> None:
        assert out.sum().item() is not None

    def upload(module: Any, _: Any, out: torch.Tensor) -> None:
        torch.zeros(3).pin_memory().to("cuda", non_blocking=True)

    seen: dict[str, Any] = {}
    kept: list[torch.Tensor] = []
    same, verdicts = torch.equal, [False, True]
    hooks: dict[str, Any] = {"right": None, "waits": wait, "copies": upload, "keeps": lambda *given: kept.append(given[2] + 1)}
    for name in (*hooks, "differs", "fails"):
        with fake_cuda.cuda():
            shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 256}
            config = _config(LlamaConfig, **shape, num_attention_heads=2)
            model: Any = AutoModelForCausalLM.from_config(config).cuda().eval()
            if hooks.get(name):
                model.model.layers[0].mlp.register_forward_hook(hooks[name])
            if name == "differs":
                torch.equal = lambda *_: verdicts.pop()  # type: ignore[assignment]
            if name == "fails":
                fake_graphs.GRAPHS.refuses = "CUDA error: operation failed due to a previous error during capture"
            told: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record, told=told: told.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
            log = logging.getLogger("tunesmith.engines")
            log.addHandler(handler)
            log.setLevel(logging.INFO)
            WATCH.reset()
            answers = greedy(model, [[5, 6, 7], [8, 9]], StopRule(40, [0]), 2)
            log.removeHandler(handler)
            torch.equal, fake_graphs.GRAPHS.refuses = same, ""
            figures = WATCH.figures()
            replays = figures["by_name"].get("graph replay", 0)
            parts = {key: figures[key] for key in ("graphs", "in_graphs", "races")}
            seen[name] = parts | {"told": told, "replays": replays, "tokens": [len(answer.ids) for answer in answers]}
    return seen


def _taken(option: str, given: list[str]) -> list[str]:
    """The values of an option, which is taken out of the arguments; none where it is not there."""
    if option not in given:
        return []
    at = given.index(option)
    _, values = given[at : at + 2]
    del given[at : at + 2]
    return values.split(",")


def main() -> None:
    """Walk the cases that were named, or all."""
    assert "TRITON_INTERPRET" not in os.environ, "kernels that are interpreted cannot be recorded"
    out, *given = sys.argv[1:]
    chips, of = (_taken(option, given) for option in ("--chips", "--of"))
    if "--sites" in given:
        given.remove("--sites")
        WATCH.sites = Counter()
    torch.set_num_threads(1)
    gc.freeze()  # what imports made is not gone through between the models
    quantise = quantised()
    cases: dict[str, Any] = {}
    launches: dict[str, Any] = {}
    for name in given or CASES:
        WATCH.kernels.clear()
        cases[name] = walk(CASES[name])
        launches |= WATCH.kernels if name in (of or cases) else {}
    found = {
        "device": seen_by_the_device(),
        "races": [*raced(), *raced_by_triton()],
        "recorded": recorded(),
        "quantise": quantise,
        "cases": cases,
        "all_cases": list(CASES),
        "compiled": compile_all(list(launches.values()), list(map(int, chips))),
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
