"""A run that trains the embedding and the head whole, from the recipe to the GGUF."""

import pytest

from shared import with_own_head, write_recipe
from tunesmith.errors import RecipeError
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import load_recipe
from tunesmith.rundir import sha256_file
from tunesmith.rundir.records.export import Commands, Merge
from tunesmith.rundir.records.training import Training

TABLES = ["embed_tokens", "lm_head"]


def test_a_run_trains_tables_on_any_number_of_ranks_and_exports_them(tiny_dir, tmp_path, talk):
    base = with_own_head(tiny_dir, tmp_path / "base")
    hashes = []
    for ranks in (2, 1):
        (tmp_path / str(ranks)).mkdir()
        changes = {"lora.modules_to_save": TABLES, "train.ranks": ranks, "train.tokens_per_step": 512, "export.gguf": ["F16"]}
        run = api.open_run(write_recipe(tmp_path / str(ranks), base, changes), tmp_path / str(ranks) / "run")
        api.make(run, ["train"], all_needed=True)
        hashes.append(sha256_file(run.adapter / "adapter_model.safetensors"))
    assert hashes[0] == hashes[1]
    assert "LoRA on 14 layers and all of model.embed_tokens and lm_head" in talk()
    training = Training.read(run.training_file)
    assert training.best_step > 0 and training.trained_weights > 2 * 8000 * 64
    api.export(run)
    assert Merge.read(run.export / "merge.json").tables == ("lm_head.weight", "model.embed_tokens.weight")
    assert [(form.form, form.state) for form in api.parity(run).forms] == [("merged", "deployable"), ("F16", "deployable")]
    engines = {command.engine for command in Commands.read(run.export / "commands.json").commands.values()}
    assert "vLLM" in engines and "vLLM, adapter on the base" not in engines

    (tmp_path / "on").mkdir()
    on = write_recipe(tmp_path / "on", base, {"lora": {}, "train.from_adapter": str(run.adapter)})
    second = api.open_run(on, tmp_path / "on" / "run")
    api.make(second, ["train"], all_needed=True)
    assert Training.read(second.training_file).first_dev_loss == pytest.approx(training.best_dev_loss, rel=1e-5)
    assert second.recipe().lora.modules_to_save == tuple(TABLES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora.modules_to_save": ["norm"]}, "'norm' is no table"),
        ({"lora.modules_to_save": TABLES, "export.lora_gguf": True}, "no whole tables"),
    ],
)
def test_what_a_recipe_may_not_say(tiny_dir, tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(tmp_path, tiny_dir, changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_head": "int8"}, "base_head: int8, but the head is trained"),
        ({"base_head": "int8", "lora.modules_to_save": ["lm_head"]}, "base_head: int8, but the head is trained"),
        ({"train.embedding_on": "host"}, "the output head of this model is the same table"),
        ({"lora.modules_to_save": ["wte"]}, "llama has no wte, but model.embed_tokens"),
    ],
)
def test_what_a_base_rules_out_is_said_before_the_first_stage(tiny_dir, tmp_path, talk, changes, said):
    """Whichever of the two is named: here they are one table."""
    changes = {"lora.modules_to_save": ["embed_tokens"], "train.learning_rate": "auto", **changes}
    recipe = write_recipe(tmp_path, tiny_dir, changes)
    run = api.open_run(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match=said):
        api.run(run)
    assert not run.stages() and "is what suits an adapter" in talk()
