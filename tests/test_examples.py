import importlib.util
import json

import pytest
import torch

import tunesmith as ts
from shared import ROOT, toy_rows
from tunesmith.chat.render import Renderer
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention, load_model
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import mean_loss, pack_loss


def _example(name="sft_loop"):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sft_loop_learns_and_peft_loads_its_adapter(tiny_dir, tmp_path, monkeypatch):
    import peft

    assert len((ROOT / "examples" / "sft_loop.py").read_text().splitlines()) <= 200
    module = _example()
    monkeypatch.setattr(module, "TOKENS_PER_STEP", 256)
    monkeypatch.setattr(module, "LEARNING_RATE", 0.01)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    losses = module.main(str(tiny_dir), str(tmp_path / "rows.jsonl"), str(tmp_path / "adapter"))
    assert losses[-1] < 0.8 * losses[0]
    tuned = peft.PeftModel.from_pretrained(load_model(tiny_dir, "fp32"), str(tmp_path / "adapter"))
    ids = torch.randint(5, 8000, (1, 5))
    assert not torch.equal(tuned(ids).logits, load_model(tiny_dir, "fp32")(ids).logits)


def test_a_loop_of_ones_own_stops_early_and_leaves_the_best_adapter(tiny_dir, tmp_path, monkeypatch):
    module = _example("own_loop")
    settings = {"tokens_per_step": 256, "max_length": 128, "learning_rate": 0.05, "num_train_epochs": 12, "evals_per_epoch": 1}
    monkeypatch.setattr(module, "SETTINGS", settings)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    losses = module.main(str(tiny_dir), str(tmp_path / "rows.jsonl"), str(tmp_path / "adapter"))
    assert min(losses) < losses[0]
    base = ts.open_base(tiny_dir)
    tuned, dev = base.load(tmp_path / "adapter"), ts.render(tmp_path / "rows.jsonl", base)[::10]
    with torch.no_grad(), attention(tuned.model, PACKED):
        documents = make_documents([(row.ids, row.supervised) for row in dev])
        kept = mean_loss(tuned.model, [make_pack(documents, tuple(range(len(dev))))])
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_sft_loop_and_library_compute_the_same_loss(tiny_dir, tokenizer):
    module, model = _example(), load_model(tiny_dir, "fp32")
    turns = [row["messages"] for row in toy_rows()[:5]]
    theirs = module.step_loss(model.base_model, model.get_output_embeddings(), [module.render(tokenizer, t) for t in turns])
    documents = make_documents([(r.ids, r.supervised) for r in map(Renderer(tokenizer).render, turns)])
    pack = make_pack(documents, tuple(range(5)))
    with attention(model, PACKED):
        ours = pack_loss(model, pack)[0] / len(pack.target_N)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
