"""``tunesmith import``: what each tool's keys become, what is refused, and that a recipe that is written says why."""

import json
from pathlib import Path

import pytest
import yaml

import tunesmith as ts
from tunesmith import cli
from tunesmith.errors import RecipeError
from tunesmith.pipeline.import_config import Wishes, import_config
from tunesmith.rundir.records.imported import Imported

ROWS = 40
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with rows of 40 characters each, which are estimated at 25 tokens."""
    rows = [{"instruction": f"Name the colour number {n:05d}.", "output": ["red one.", "blue one"][n % 2]} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(values, *, name="config.yaml", **wishes):
    """What becomes of keys, and the recipe by dotted keys; ``{}`` where none is written."""
    text = json.dumps(values) if name.endswith(".json") else yaml.safe_dump(values)
    Path(name).write_text(values if isinstance(values, str) else text)
    result = import_config(Path(name), Wishes(**{"metric": "exact_match", "out": Path("recipe.yaml"), **wishes}))
    if result.recipe is None:
        return result, {}
    recipe = ts.load_recipe(Path("recipe.yaml")).model_dump(mode="python")
    flat = {
        f"{section}.{key}": value for section, keys in recipe.items() if isinstance(keys, dict) for key, value in keys.items()
    }
    return result, {**recipe, **flat}


def kinds(result):
    return {key.key: key.kind for key in result.keys}


AXOLOTL = {
    "base_model": "o/m",
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "learning_rate": "1e-4",  # what YAML 1.1 makes of it
    "lora_model_dir": None,
}
FACTORY = {
    "model_name_or_path": "o/m",
    "stage": "sft",
    "do_train": True,
    "dataset": "mine",
    "dataset_dir": ".",
    "template": "own",
}
TRL = {"model_name_or_path": "o/m", "dataset_name": "rows.jsonl", "use_peft": True}
SWIFT = {"model": "o/m", "tuner_type": "lora", "dataset": ["rows.jsonl"]}
JOB = {"object": "fine_tuning.job", "model": "gpt-4o-mini", "training_file": "rows.jsonl"}


@pytest.fixture
def described(here):
    """The rows under the name ``mine``, as a trainer describes them."""
    (here / "dataset_info.json").write_text(
        json.dumps({"mine": {"file_name": "rows.jsonl"}, "images": {"file_name": "x.json"}})
    )


CASES = {
    "axolotl, its defaults": (
        AXOLOTL,
        {
            **{"model": "o/m", "base": "auto", "seed": 42, "lora.r": 8, "lora.alpha": 16, "lora.dropout": 0.0},
            **{"lora.target_modules": "peft-default", "train.learning_rate": 1e-4, "train.schedule": "cosine"},
            **{"train.max_length": 512, "data.on_too_long": "drop", "train.num_train_epochs": 1, "train.tokens_per_step": 25},
            **{"train.warmup_ratio": 0.03, "train.replay": 0.0, "data.dev_fraction": 0.1},
        },
    ),
    "axolotl, its keys": (
        {
            **AXOLOTL,
            **{"adapter": "qlora", "load_in_4bit": True, "bf16": True, "lora_target_linear": True, "lora_dropout": 0.1},
            **{"peft_use_rslora": True, "peft_use_dora": True, "loraplus_lr_ratio": 16, "lr_scheduler": "constant"},
            **{"optimizer": "paged_adamw_8bit", "warmup_steps": 4, "num_epochs": 2, "micro_batch_size": 2},
            **{"gradient_accumulation_steps": 2, "val_set_size": 0.2, "evals_per_epoch": 3, "sequence_len": 1024},
            **{"weight_decay": 0.01, "max_grad_norm": 0.5, "seed": 7, "excess_length_strategy": "raise"},
            **{"chat_template": "chatml", "default_system_message": "Be short.", "revision_of_model": "abc"},
            "lora_modules_to_save": ["embed_tokens", "lm_head"],
        },
        {
            **{"base": "nf4", "train.compute": "bf16", "lora.target_modules": "all-linear", "lora.dropout": 0.1},
            **{"lora.use_rslora": True, "lora.use_dora": True, "train.loraplus_lr_ratio": 16, "train.schedule": "constant"},
            **{"train.optimizer": "paged_adamw_8bit", "train.num_train_epochs": 2, "train.tokens_per_step": 100},
            **{"train.warmup_ratio": 0.25, "data.dev_fraction": 0.2, "train.evals_per_epoch": 3, "seed": 7},
            **{"train.weight_decay": 0.01, "train.max_grad_norm": 0.5, "data.on_too_long": "refuse", "revision": "abc"},
            **{"chat.template": Path("chatml"), "task.short_prompt": "Be short."},
            "lora.modules_to_save": ("embed_tokens", "lm_head"),
        },
    ),
    "LLaMA-Factory, its defaults": (
        FACTORY,
        {
            **{"lora.r": 8, "lora.alpha": 16, "lora.dropout": 0.0, "lora.target_modules": "all-linear", "seed": 42},
            **{"train.learning_rate": 5e-5, "train.schedule": "linear", "train.num_train_epochs": 3, "train.max_length": 2048},
            **{"train.tokens_per_step": 200, "data.on_too_long": "refuse", "train.warmup_ratio": 0.0},
        },
    ),
    "LLaMA-Factory, its keys": (
        {
            **FACTORY,
            **{"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj", "quantization_bit": 4, "fp16": True},
            **{"max_samples": 20, "enable_thinking": False, "default_system": "Be short.", "val_size": 8, "packing": True},
            **{"cutoff_len": 52, "use_rslora": True, "warmup_ratio": 0.1, "loraplus_lr_ratio": 4.0},
            "additional_target": "embed_tokens,lm_head",
        },
        {
            **{"base": "nf4", "train.compute": "fp16", "lora.alpha": 8, "lora.target_modules": ("q_proj", "v_proj")},
            **{"data.limit": 20, "data.dev_fraction": 0.2, "train.tokens_per_step": 416, "train.warmup_ratio": 0.1},
            **{"chat.enable_thinking": False, "task.short_prompt": "Be short.", "lora.use_rslora": True},
            "lora.modules_to_save": ("embed_tokens", "lm_head"),
        },
    ),
    "TRL, its defaults": (
        TRL,
        {
            **{"base": "bf16", "lora.r": 16, "lora.alpha": 32, "lora.dropout": 0.05, "lora.target_modules": "peft-default"},
            **{"train.learning_rate": 2e-5, "train.schedule": "linear", "train.max_length": 1024, "train.num_train_epochs": 3},
        },
    ),
    "TRL, its keys": (
        {**TRL, "lora_target_modules": ["all-linear"], "load_in_4bit": True, "warmup_steps": 0.1, "max_steps": 10},
        {
            **{"base": "nf4", "train.compute": "bf16", "lora.target_modules": "all-linear", "train.warmup_ratio": 0.1},
            "train.num_train_epochs": 2,  # 10 steps of 8 rows, and there are 40
        },
    ),
    "ms-swift, its defaults": (
        SWIFT,
        {
            **{"lora.r": 8, "lora.alpha": 32, "lora.dropout": 0.05, "lora.target_modules": "all-linear"},
            **{"train.learning_rate": 1e-4, "train.schedule": "cosine", "data.on_too_long": "drop", "train.max_length": 64},
        },
    ),
    "ms-swift, its keys": (
        {
            **{**SWIFT, "torch_dtype": "bfloat16", "system": "Be short.", "dataset": ["rows.jsonl#10"], "max_length": 128},
            **{"split_dataset_ratio": 0.1, "truncation_strategy": "right", "target_modules": ["q_proj"], "lorap_lr_ratio": 2},
        },
        {
            **{"base": "bf16", "task.short_prompt": "Be short.", "data.limit": 10, "data.on_too_long": "refuse"},
            **{"lora.target_modules": ("q_proj",), "train.loraplus_lr_ratio": 2, "data.dev_fraction": 0.1},
        },
    ),
    "OpenAI": (
        {
            **JOB,
            "model": "o/m",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        },
        {"train.num_train_epochs": 2, "train.tokens_per_step": 100, "train.learning_rate": "auto", "model": "o/m"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_keys_have_their_place(case, here, described):
    values, expected = CASES[case]
    _, recipe = imported(values)
    assert {key: recipe[key] for key in expected} == expected
    assert recipe["data.path"] == str(here / "rows.jsonl")


WITHOUT = {
    "no adapter": ({**AXOLOTL, "adapter": None}, "adapter"),
    "full": ({**FACTORY, "finetuning_type": "full", "learning_rate": 1e-5}, "finetuning_type"),
    "TRL's default": ({**TRL, "use_peft": None, "lora_r": None}, "use_peft"),
    "8 bits": ({**AXOLOTL, "load_in_8bit": True}, "load_in_8bit"),
    "questions": ({**AXOLOTL, "train_on_inputs": True}, "train_on_inputs"),
    "an optimizer": ({**TRL, "optim": "adafactor"}, "optim"),
    "a schedule": ({**TRL, "lr_scheduler_type": "polynomial"}, "lr_scheduler_type"),
    "Adam's beta": ({**TRL, "adam_beta2": 0.95}, "adam_beta2"),
    "norms": ({**AXOLOTL, "lora_modules_to_save": ["lm_head", "norm"]}, "lora_modules_to_save"),
    "noise": ({**FACTORY, "neftune_noise_alpha": 5}, "neftune_noise_alpha"),
    "history": ({**FACTORY, "mask_history": True}, "mask_history"),
    "PiSSA": ({**FACTORY, "pissa_init": True}, "pissa_init"),
    "a key nobody knows": ({**AXOLOTL, "learning_rates": 1}, "learning_rates"),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_a_key_that_changes_the_training_is_refused_and_can_be_left_out_by_name(case, here, described):
    values, key = WITHOUT[case]
    result, recipe = imported(values)
    assert [entry.key for entry in result.refused] == [key] and result.recipe is None and not recipe
    assert not Path("recipe.yaml").exists()
    result, recipe = imported(values, without=(key,))
    assert not result.refused and recipe["model"] == "o/m"
    assert "Left out as asked" in Path("recipe.yaml").read_text()
    if case in ("no adapter", "full", "TRL's default"):
        assert recipe["train.learning_rate"] == "auto"  # one for all weights is another number


FINAL = {
    "RL": ({**AXOLOTL, "rl": "dpo"}, "rl"),
    "images": ({**AXOLOTL, "processor_type": "AutoProcessor", "skip_prepare_dataset": True}, "processor_type"),
    "no alpha": ({**AXOLOTL, "lora_alpha": None}, "lora_alpha"),
    "no number": ({**AXOLOTL, "lora_r": "many"}, "lora_r"),
    "texts": ({**AXOLOTL, "datasets": [{"path": "rows.jsonl", "type": "completion"}]}, "datasets[0].type"),
    "no rows there": ({**AXOLOTL, "datasets": [{"path": "gone.jsonl", "type": "alpaca"}]}, "datasets[0].path"),
    "a stage": ({**FACTORY, "stage": "dpo"}, "stage"),
    "an export": ({**FACTORY, "do_train": None, "export_dir": "x"}, "do_train"),
    "an unknown name": ({**FACTORY, "dataset": "theirs"}, "dataset"),
    "8 bits": ({**FACTORY, "quantization_bit": 8}, "quantization_bit"),
    "a classifier": ({**SWIFT, "task_type": "seq_cls"}, "task_type"),
    "closed weights": (JOB, "model"),
}


@pytest.mark.parametrize("case", FINAL)
def test_what_no_option_can_leave_out(case, here, described):
    values, key = FINAL[case]
    result, _ = imported(values)
    assert key in [entry.key for entry in result.refused if entry.final]
    with pytest.raises(RecipeError, match="no refused key of that name"):
        imported(values, without=(key,))


def test_a_value_can_be_given_and_rows_named(here):
    result, recipe = imported(
        {**AXOLOTL, "lora_alpha": None, "datasets": [{"path": "gone.jsonl", "type": "completion"}]},
        settings={"lora_alpha": 64},
        data="rows.jsonl",
    )
    assert not result.refused and recipe["lora.alpha"] == 64 and recipe["data.path"] == str(here / "rows.jsonl")


def test_every_key_stands_in_a_list_and_every_line_of_the_recipe_says_why(here):
    result, _ = imported(
        {**AXOLOTL, "wandb_project": "x", "flash_attention": True, "load_in_8bit": False, "saves_per_epoch": 1}
    )
    assert {key: kinds(result)[key] for key in ("wandb_project", "flash_attention", "load_in_8bit", "saves_per_epoch")} == (
        dict.fromkeys(("wandb_project", "flash_attention", "load_in_8bit", "saves_per_epoch"), "dropped")
    )
    lines = [line for line in Path("recipe.yaml").read_text().splitlines() if line and not line.startswith("#")]
    assert all("  # " in line or line.endswith(":") for line in lines)
    assert not set(AXOLOTL) - {"datasets", "lora_model_dir"} - set(kinds(result))


def test_both_walks_are_counted_from_the_rows(here):
    result, recipe = imported({**AXOLOTL, "num_epochs": 3, "micro_batch_size": 4, "val_set_size": 0.1}, gpus=2)
    before, after = result.before, result.after
    assert before is not None and after is not None
    assert (before.rows, before.rows_per_step, before.steps) == (36, 8, 15)
    assert after.rows == 30 and recipe["train.tokens_per_step"] == 8 * 25
    assert after.steps == 3 * -(-30 // 8)


def test_steps_that_end_within_an_epoch_become_a_limit_on_the_rows(here):
    result, recipe = imported({**AXOLOTL, "max_steps": 15})
    assert recipe["data.limit"] == 20 and recipe["train.num_train_epochs"] == 1
    assert result.after is not None and result.before is not None
    assert result.after.rows == 15 == result.before.steps


def test_what_is_trained_otherwise_is_said(here, described):
    trl, _ = imported(TRL)
    assert any("questions included" in sentence for sentence in trl.differs)
    Path("recipe.yaml").unlink()
    answers, _ = imported({**TRL, "assistant_only_loss": True})
    assert not any("questions included" in sentence for sentence in answers.differs)
    Path("recipe.yaml").unlink()
    factory, _ = imported({**FACTORY, "cutoff_len": 20})
    assert factory.too_long == ROWS
    assert {sentence.partition(":")[0] for sentence in factory.differs} == {"the texts", "the rows", "long rows"}


def test_the_metric_is_proposed_from_the_rows_with_its_reason(here):
    _, recipe = imported(AXOLOTL, metric=None)
    assert recipe["task.metric"] == "classification" and set(recipe["task.labels"]) == {"red one.", "blue one"}
    assert "the answers are 2 classes" in Path("recipe.yaml").read_text()


def test_tokens_are_counted_with_a_model_that_is_here(here, tiny_dir):
    result, recipe = imported({**AXOLOTL, "base_model": str(tiny_dir)})
    assert "template of" in result.tokens and recipe["model"] == str(tiny_dir)


def notebook(*cells):
    return json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells]})


CELLS = (
    "!pip install unsloth\nlength = 1024\nrank = 8",
    "from unsloth import FastLanguageModel\nimport torch\n"
    "m, t = FastLanguageModel.from_pretrained('o/m', max_seq_length=length)",
    "m = FastLanguageModel.get_peft_model(m, r=rank, lora_alpha=rank * 2, bias='none', loftq_config=None)",
    "rows = load_dataset('json', data_files='rows.jsonl', split='train')",
    "s = SFTTrainer(model=m, train_dataset=rows, args=SFTConfig(\n"
    "    learning_rate=2e-4, max_steps=5, warmup_steps=1, bf16=is_bfloat16_supported(), optim='adamw_8bit'))",
    "s = train_on_responses_only(s)",
    "if False: m.save_pretrained_gguf('x', t, quantization_method='q8_0')\n"
    "m.save_pretrained_gguf('x', t, quantization_method='q4_k_m')",
)


def test_a_notebook_is_read_and_not_run(here):
    result, recipe = imported(notebook(*CELLS), name="nb.ipynb")
    expected = {
        **{"base": "nf4", "lora.r": 8, "lora.alpha": 16, "lora.dropout": 0.0, "lora.target_modules": LAYERS, "seed": 3407},
        **{"train.max_length": 1024, "train.learning_rate": 2e-4, "train.optimizer": "adamw_8bit", "export.gguf": ("Q4_K_M",)},
        "train.warmup_ratio": 0.2,
    }
    assert {key: recipe[key] for key in expected} == expected
    assert not any("questions included" in sentence for sentence in result.differs)


@pytest.mark.parametrize(
    ("arguments", "targets", "saved"),
    [
        ("target_modules=['q_proj', 'embed_tokens', 'lm_head']", ("q_proj",), ("embed_tokens", "lm_head")),
        ("target_modules=['q_proj', 'embed_tokens'], modules_to_save=['lm_head']", ("q_proj",), ("lm_head", "embed_tokens")),
        ("modules_to_save=['lm_head']", LAYERS, ("lm_head",)),
    ],
)
def test_tables_of_a_notebook_are_trained_whole_wherever_they_are_named(arguments, targets, saved, here):
    cells = [cell.replace("r=rank,", f"r=rank, {arguments},") for cell in CELLS]
    result, recipe = imported(notebook(*cells), name="nb.ipynb")
    assert (recipe["lora.target_modules"], recipe["lora.modules_to_save"]) == (targets, saved) and not result.refused


NOTEBOOKS = {
    "a computed value": ("learning_rate=2e-4", "learning_rate=rate()", "learning_rate"),
    "a name of two values": ("rank = 8", "rank = 8\nrank = 16", "r"),
    "another trainer": ("SFTTrainer(", "DPOTrainer(", "(trainer)"),
    "a model of images": ("FastLanguageModel.from_pretrained", "FastVisionModel.from_pretrained", "(model)"),
    "all weights": ("'o/m',", "'o/m', full_finetuning=True,", "full_finetuning"),
    "computed rows": ("data_files='rows.jsonl'", "data_files=find()", "load_dataset"),
}


@pytest.mark.parametrize("case", NOTEBOOKS)
def test_a_notebook_that_cannot_be_read_to_the_end_says_which_key(case, here):
    before, after, key = NOTEBOOKS[case]
    result, _ = imported(notebook(*(cell.replace(before, after) for cell in CELLS)), name="nb.ipynb")
    assert key in [entry.key for entry in result.refused]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "base_model: x\n\tlora_r: 8", "line 2"),
        ("a.json", '{"model":\n oops}', "line 2"),
        ("a.yaml", "- 1", "expected keys and values, found a list"),
        ("a.yaml", "learning_rate: 1", "cannot tell which tool"),
        ("a.yaml", "model_name_or_path: x\nlearning_rate: 1", "LLaMA-Factory or TRL|cannot tell"),
        ("a.yaml", "compute_environment: LOCAL_MACHINE", "Accelerate"),
        ("a.ipynb", "{}", "is no notebook"),
        ("a.py", "x = (", "no call of FastLanguageModel"),
        ("a.py", "FastLanguageModel.from_pretrained(", "line 1: is no Python"),
    ],
)
def test_wrong_files(name, text, words, here):
    with pytest.raises(RecipeError, match=words) as error:
        imported(text, name=name)
    assert error.value.hint


def test_the_tool_can_be_named(here):
    _, recipe = imported(
        {"model_name_or_path": "o/m", "use_dora": True, "lora_rank": 4, "do_train": True, "dataset": ["x"]},
        tool="llama-factory",
        data="rows.jsonl",
    )
    assert recipe["lora.r"] == 4 and recipe["lora.use_dora"]


def test_nothing_is_written_over(here):
    Path("recipe.yaml").touch()
    with pytest.raises(RecipeError, match="already a file"):
        imported(AXOLOTL)


def test_several_data_sets_become_several_paths(here):
    (here / "more.jsonl").write_text((here / "rows.jsonl").read_text().replace("Name", "Say"))
    sets = [{"path": "rows.jsonl", "type": "alpaca"}, {"path": "more.jsonl", "type": "alpaca", "split": "train[:10]"}]
    _, recipe = imported({**AXOLOTL, "datasets": sets})
    assert [(Path(rows["path"]).name, rows["count"]) for rows in recipe["data.path"]] == [
        ("rows.jsonl", None),
        ("more.jsonl", 10),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 4, "--without neftune_noise_alpha writes a recipe"),
        (("--without", "neftune_noise_alpha"), 0, ""),
        (("--without", "lora_r"), 4, "can be left out: neftune_noise_alpha"),
        (("--set", "lora_r"), 2, "KEY=VALUE"),
        (("--set", "neftune_noise_alpha=0", "--metric", "rogue"), 4, "did you mean rouge"),
        (("--set", "neftune_noise_alpha=0", "--data", "gone.jsonl"), 4, "gone.jsonl: no such file"),
    ],
)
def test_the_command(arguments, code, words, here, monkeypatch, capsys):
    Path("a.yml").write_text(yaml.safe_dump({**AXOLOTL, "neftune_noise_alpha": 5}))
    monkeypatch.setattr("sys.argv", ["tunesmith", "import", "a.yml", "--json", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    talk = capsys.readouterr()
    assert (stop.value.code or 0) == code and "Traceback" not in talk.err
    if code == 0:
        assert Imported.parse(talk.out).recipe == "a.yaml" and Path("a.yaml").exists()
    else:
        assert words in " ".join(talk.err.split()) and not Path("a.yaml").exists()
