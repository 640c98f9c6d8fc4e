"""What each key of training and export changes: base, lora, train, export."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, LlamaConfig, LlamaForCausalLM

from tunesmith.checkpoints.facts import base_facts
from tunesmith.checkpoints.resolve import find_model
from tunesmith.data.pack import Plan
from tunesmith.engines.base import open_base
from tunesmith.errors import ExportError, TrainingError
from tunesmith.export.forms.merged import merge_adapter
from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.mlp import FusedMLP
from tunesmith.models.adapter import adapter_state, save_adapter
from tunesmith.models.fuse import fuse
from tunesmith.models.keep_less import keep_less
from tunesmith.models.load import load_model
from tunesmith.models.placement import Placement
from tunesmith.models.precision import precision
from tunesmith.models.streaming import layers_of
from tunesmith.models.swap import add_lora
from tunesmith.models.whole_tables import add_whole_tables
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.dials import dials_of_run
from tunesmith.pipeline.export import context_of, dry_run
from tunesmith.pipeline.table import table_of
from tunesmith.processes import Team
from tunesmith.recipe import Lora, TrainSettings
from tunesmith.recipe.adapter import taken_over
from tunesmith.rundir.records.data import Rendered
from tunesmith.tracking import MetricsLog, read_metrics
from tunesmith.train import distributed, loop
from tunesmith.train.documents import make_documents
from tunesmith.train.race import race
from tunesmith.train.replay import replay_count
from tunesmith.train.schedule import learning_rate
from tunesmith.train.together import split_sequences


def _precision(recipe, tmp):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.models.precision._faster", lambda directory: "bf16")
        return precision("nf4", recipe.train.compute, find_model(recipe.model))


def _training(recipe, tmp):
    """What a training is given: a folder for it, and all that stands first in the call of a race or of the training itself."""
    folder = tmp / hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]
    folder.mkdir(exist_ok=True)
    model = load_model(find_model(recipe.model), recipe.base)
    layers = add_lora(model, recipe.lora, recipe.seed)
    generator = torch.Generator().manual_seed(0)
    documents = make_documents([(torch.randint(5, 900, (20,), generator=generator).tolist(), [0] * 10 + [1] * 10)] * 8)
    t = TrainSettings(**recipe.train.model_dump())
    steps = Plan(documents.lengths, t.num_train_epochs, t.tokens_per_step, t.max_length, recipe.seed)
    return folder, (model, layers, documents, steps, documents, t, recipe.seed, folder / "checkpoints")


def _fit(recipe, tmp):
    folder, training = _training(recipe, tmp)
    _, layers, _, steps, *_ = training
    loop.fit(*training, MetricsLog(folder / "m.jsonl"), "x")
    weights = [float(t.double().sum()) for t in adapter_state(layers).values()]
    records = [(r["loss"], r.get("dev_loss")) for r in read_metrics(folder / "m.jsonl")]
    return weights, records, [len(packs) for _, packs in steps]


def _raced(recipe, tmp):
    """Rates that are tried before a training."""
    _, training = _training(recipe, tmp)
    outcome = race(*training, "x")
    return None if outcome is None else len(outcome.entries)


def _rate(recipe, tmp):
    return learning_rate(TrainSettings(**recipe.train.model_dump()), 3, 9)


def _checkpoints(recipe, tmp):
    """How many checkpoints a run leaves."""
    _fit(recipe, tmp)
    return len(list(tmp.glob("*/checkpoints/step-*")))


def _ranks(recipe, tmp):
    """How many processes compute a run whose steps have two packs."""
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "Team", lambda size, *others: sizes.append(size) or Team(size, *others))
        _fit(recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_length": 40})}), tmp)
    return sizes


def _recomputed(recipe, tmp):
    """How often a run recomputes a part."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.models.recompute.checkpoint", lambda f, *x, **o: calls.append(1) or checkpoint(f, *x, **o))
        _fit(recipe, tmp)
    return len(calls)


def _is_streamed(recipe, tmp):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp))
        return layers_of(open_base(recipe).load().model) is not None


def _tiles(recipe, tmp):
    """Tokens that pass an MLP at a time."""
    _, (model, *_) = _training(recipe, tmp)
    fuse(model)
    with keep_less(model, TrainSettings(**recipe.train.model_dump())):
        return {module.tile for module in model.modules() if isinstance(module, FusedMLP)}


def _refused(recipe, tmp):
    """What a training on a CPU says of it."""
    try:
        _fit(recipe, tmp)
    except TrainingError as error:
        return error.message
    return None


def _shared_out(recipe, tmp):
    """How many layers' bytes a process of two is planned to hold."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
            patch.setenv(name, value)
        return dials_of_run(open_base(recipe), recipe.lora, TrainSettings(**recipe.train.model_dump())).resident_layers


def _neighbours(recipe, tmp):
    """How many processes are asked to compute a pack together."""
    asked = []
    split_sequences(torch.nn.Module(), SimpleNamespace(parts=asked.append), recipe.train.sequence_parallel)
    return asked


def _is_deterministic(recipe, tmp):
    """Whether a training step runs under PyTorch's deterministic switch."""
    seen, is_deterministic = [], torch.are_deterministic_algorithms_enabled
    with pytest.MonkeyPatch.context() as patch:
        original = distributed.step_packs
        patch.setattr(
            distributed,
            "step_packs",
            lambda *args: seen.append(torch.are_deterministic_algorithms_enabled()) or original(*args),
        )
        _fit(recipe, tmp)
    return any(seen), is_deterministic()


def _followed(recipe, tmp):
    """The trackers that are told of a run while it is made."""
    started = []
    with pytest.MonkeyPatch.context() as patch:
        child = SimpleNamespace(poll=lambda: 0)
        patch.setattr("tunesmith.pipeline.early.find_spec", lambda name: True)
        patch.setattr("tunesmith.pipeline.followers.hardware.Child", lambda command, **_: started.append(command[-2]) or child)
        api.data(api.open_run(tmp / "toy.yaml", tmp / f"run-{len(recipe.report_to)}"))
    return started


def _per_layer_table(recipe, tmp):
    """What holds the table that feeds every layer."""
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "vocab_size": 8}
    config |= {"num_key_value_heads": 1, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 8}
    Gemma4ForCausalLM(Gemma4TextConfig(**config, head_dim=16, global_head_dim=16)).save_pretrained(tmp / "ple")
    model = load_model(tmp / "ple", "fp32", placement=Placement(per_layer_embeddings=recipe.per_layer_embeddings))
    return {type(module) for name, module in model.named_modules() if "embed_tokens_per_layer" in name}


def _tables(recipe, tmp):
    """What holds the embedding and the head of a model that has both."""
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=False)).save_pretrained(tmp / "untied")
    placement = Placement(embedding_on=recipe.train.embedding_on, base_head=recipe.base_head)
    model = load_model(tmp / "untied", "fp32", placement=placement)
    return type(model.get_input_embeddings()), type(model.get_output_embeddings())


def _first_rank(recipe, tmp):
    """The rank of the adapter that a training begins from."""
    save_adapter(tmp, {}, Lora(r=3), "base")
    return taken_over(Lora(), recipe.train.from_adapter or tmp / "none").r


def _adapter(recipe, tmp):
    model = load_model(find_model(recipe.model), "fp32")
    layers = add_lora(model, recipe.lora, recipe.seed)
    first = next(iter(layers.values()))
    first.lora_B.data.normal_(generator=torch.Generator().manual_seed(0))
    with at_step(first, StepContext(seed=0, step=0)) as enter:
        enter(0)
        drawn = first(torch.ones(1, first.weight.shape[1])).sum().item()
    layers |= add_whole_tables(model, recipe.lora.modules_to_save)
    return list(layers), first.lora_A.shape, first.scale, drawn


def _exported(recipe, tmp):  # the plan that an export carries out
    return dry_run(api.open_run(tmp / "toy.yaml", tmp / "run"))


def _context(recipe, tmp):
    lengths = Rendered(train_tokens=90, supervised_tokens=9, longest=40, max_new_tokens=10, left_out=0)
    lengths.write((run := api.open_run(tmp / "toy.yaml", tmp / "run")).rendered_file)
    return context_of(run, recipe)


def _merged_into(recipe, tmp):  # what the merge is asked for, up to where its directory would be read
    arguments = []

    def merged(*given, **_):
        arguments.append(given[4])
        raise ExportError("stopped here", "")

    run = api.open_run(tmp / "toy.yaml", tmp / "run")
    job = SimpleNamespace(run=run, adapter=run.adapter, recipe=recipe, base=Path(recipe.model), staged=tmp)
    job.renderer, job.mixed = SimpleNamespace(stop_ids=(), template=""), None
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ExportError):
        patch.setattr("tunesmith.export.forms.merged.merge", merged)
        merge_adapter(job, SimpleNamespace(target="merged"))
    return arguments


def _kinds_of_layers(recipe, tmp):
    return {type(layer).__name__ for layer in open_base(recipe).load().adapt(recipe.lora).layers.values()}


OBSERVE = {
    "report_to": (["mlflow"], _followed),
    "base": ("bf16", lambda r, t: load_model(find_model(r.model), r.base).dtype),
    "base_budget": ("+10%", lambda recipe, tmp: [stage.name for stage in table_of(recipe).stages]),
    "per_layer_embeddings": ("nf4", _per_layer_table),
    "base_head": ("int8", _tables),
    "max_position_embeddings": (4096, lambda r, t: base_facts(open_base(r).directory).max_positions),
    "rope_theta": (12345.0, lambda r, t: open_base(r).load().model.config.rope_parameters["rope_theta"]),
    "train.embedding_on": ("host", _tables),
    "lora.r": (2, _adapter),
    "lora.alpha": (3, _adapter),
    "lora.dropout": (0.5, _adapter),
    "lora.target_modules": ("peft-default", _adapter),
    "lora.use_rslora": (True, _adapter),
    "lora.use_dora": (True, _adapter),
    "lora.modules_to_save": (["embed_tokens"], _adapter),
    "train.from_adapter": (".", _first_rank),
    "train.learning_rate": (0.1, _rate),
    "train.schedule": ("linear", _rate),
    "train.warmup_ratio": (0.9, _rate),
    "train.max_grad_norm": (1e-6, _fit),
    "train.compute": ("fp32", _precision),
    "train.optimizer": ("adamw_8bit", _fit),
    "train.weight_decay": (0.9, _fit),
    "train.loraplus_lr_ratio": (4.0, _fit),
    "train.deterministic": (True, _is_deterministic),
    "train.recompute": ("mlp", _recomputed),
    "train.resident_layers": (0, _is_streamed),
    "train.shard": (True, _shared_out),
    "train.sequence_parallel": (2, _neighbours),
    "train.memory": ("1MB", _ranks),
    "train.offload": ("inputs", _refused),
    "train.mlp_tile": (8, _tiles),
    "train.num_train_epochs": (2, _fit),
    "train.tokens_per_step": (20, _fit),
    "train.max_length": (30, _fit),
    "train.evals_per_epoch": (1, _fit),
    "train.replay": (0.5, lambda r, t: (table_of(r)["train"].needs, replay_count(r.train.replay, 40))),
    "train.race": (True, _raced),
    "train.qat": (True, _kinds_of_layers),
    "train.keep_checkpoints": (3, _checkpoints),
    "train.ranks": (2, _ranks),
    "export.merge_into": ("original", _merged_into),
    "export.gguf": (["F16", "Q8_0"], _exported),
    "export.imatrix": (True, _exported),
    "export.lora_gguf": (True, _exported),
    "export.num_ctx": (512, _context),
}
FIXED = {key: {"train.tokens_per_step": 80} for key in OBSERVE if key.startswith("train.")}
FIXED["base_budget"] = {"base": "nf4"}
FIXED["train.qat"] = {"export.gguf": ["Q4_0"]}
FIXED["rope_theta"] = {"max_position_embeddings": 4096}
FIXED["train.memory"] = {**FIXED["train.memory"], "train.ranks": 2}
FIXED["train.resident_layers"] = {"base": "nf4", "train.compute": "fp32"}
FIXED["train.shard"] = {"base": "nf4", "train.compute": "fp32"}
FIXED["train.offload"] = {**FIXED["train.offload"], "train.recompute": "layer"}
