"""People's own loop is the path of ``train``: the same records and weights to the bit, and refusals before the first turn."""

import json

import pytest
import torch

import tunesmith as ts
from shared import toy_rows
from tunesmith.errors import DataError, RecipeError, TrainingError
from tunesmith.models.adapter import adapter_state, read_adapter
from tunesmith.pipeline.own_loop import NOT_HERE
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import read_metrics
from tunesmith.train import loop

SMALL = {"tokens_per_step": 256, "max_length": 128, "learning_rate": 0.01, "num_train_epochs": 1}


@pytest.fixture
def base(tiny_dir):
    return ts.open_base(tiny_dir, base="fp32").add_lora(r=2, dropout=0.0)


def test_its_steps_are_the_lines_of_a_runs_table(tiny_run):
    recipe = tiny_run.recipe()
    model = ts.open_base(recipe).add_lora(seed=recipe.seed, **recipe.lora.model_dump())
    train, dev = (ts.render(tiny_run.data / f"{part}.jsonl", model) for part in ("train", "dev"))
    settings = recipe.train.model_dump(exclude=set(NOT_HERE))
    best, weights = float("inf"), {}
    records = []
    for step in ts.train_steps(model, train, dev=dev, seed=recipe.seed, **settings):
        records.append(step)
        if step.dev_loss is not None and step.dev_loss < best:
            best, weights = step.dev_loss, {name: tensor.clone() for name, tensor in adapter_state(model.layers).items()}
    assert [json.loads(json.dumps(record.line())) for record in records] == read_metrics(tiny_run.metrics_file)
    assert best == Training.read(tiny_run.training_file).best_dev_loss
    expected = read_adapter(tiny_run.adapter)
    assert weights.keys() == expected.keys() and all(bool((weights[name] == expected[name]).all()) for name in weights)


def test_rows_come_from_a_file_of_any_format_or_from_memory(base, tmp_path, caplog):
    texts = [[turn["content"] for turn in row["messages"]] for row in toy_rows()[:4]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in texts))
    rendered = ts.render(tmp_path / "rows.jsonl", base)
    assert rendered == ts.render(toy_rows()[:4], base)
    assert rendered[3] == base.renderer.render(toy_rows()[3]["messages"])
    ts.render([{"prompt": "q", "completion": "<think>a</think>b"}], base)
    assert "hold reasoning as text" in caplog.text


def test_training_goes_on_where_it_was_left(base):
    """A second call trains the same adapter on; a loop that is broken off leaves the adapter of its last step."""
    rendered = ts.render(toy_rows(), base)
    losses = [step.loss for step in ts.train_steps(base, rendered, **SMALL)]
    for step in ts.train_steps(base, rendered, seed=1, **SMALL):
        assert step.loss < losses[0]
        break


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"learning_rat": 1.0}, RecipeError, "train_steps: unknown key learning_rat\nhint: did you mean learning_rate"),
        ({"learning_rate": -1.0}, RecipeError, "learning_rate: expected 'auto', or more than 0"),
        ({"compute": "bf16"}, RecipeError, "compute has no meaning here\nhint: .*open_base"),
        ({"race": True}, RecipeError, "race has no meaning here\nhint: .*tunesmith train"),
        ({"max_length": 8}, DataError, r"rows\[0\] has \d+ tokens, more than max_length 8, as have 63 more of 64"),
        ({"dev": []}, DataError, "dev: no rows"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_turn(base, change, kind, words):
    with pytest.raises(kind, match=f"(?i){words}"):
        ts.train_steps(base, ts.render(toy_rows(), base), **change)


def test_a_gpu_that_is_full_is_told_with_the_next_try(base, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.96 GiB.")
        yield

    monkeypatch.setattr(loop, "steps_in_world", fail)
    with pytest.raises(
        TrainingError, match=r"training: the GPU's memory is full: 1.96 GiB .*\nhint: .*order: recompute: layer; base"
    ):
        next(iter(ts.train_steps(base, ts.render(toy_rows(), base), **SMALL)))


def test_a_model_without_an_adapter_is_refused(tiny_dir):
    with pytest.raises(TrainingError, match=r"no adapter to train\nhint: .*add_lora"):
        ts.train_steps(ts.open_base(tiny_dir, base="fp32").load(), [])


def test_a_preview_shows_every_token_once_and_rows_that_cannot_be_rendered(tiny_dir, tokenizer, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "<b>"}]} for word in ("one", "two")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{% if m.content == 'two' %}{{ raise_exception('not two') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    shown = ts.preview(tmp_path / "rows.jsonl", tiny_dir, template=tmp_path / "own.jinja")
    text = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n<b><|im_end|>\n"
    [document] = shown[0].documents
    assert "".join(piece.text for piece in document.pieces) == text
    assert [token for piece in document.pieces for token in piece.ids] == tokenizer(text, add_special_tokens=False).input_ids
    assert 0 < document.supervised < document.tokens and "not two" in str(shown[1].error)
    assert "cannot be rendered" in shown._repr_html_() and "<b>" not in shown._repr_html_()
