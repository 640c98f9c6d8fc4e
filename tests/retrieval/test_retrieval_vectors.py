"""Sentence embeddings against the stock model one text at a time, and Qdrant's local mode against the SQLite store."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from shared import write_recipe
from tunesmith.errors import MissingPackage, ModelError, RunError
from tunesmith.recipe import load_recipe
from tunesmith.retrieval.corpus import Corpus, open_store
from tunesmith.retrieval.embed import MINILM_PACKAGE, Embedder, load_embedder
from tunesmith.retrieval.store import SqliteStore

WORDS = ["a", "red", "car", "house", "blue", "the", "shop", "opens", "at", "nine"]
TEXTS = ["a red car", "the shop opens at nine", "blue", "a blue house at the shop", "", "red " * 40, "a red car house"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random encoder in sentence-transformers' form, limit 16 tokens."""
    directory = tmp_path_factory.mktemp("encoder")
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=15, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.15
    )
    BertModel(config).save_pretrained(directory)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path) in enumerate(kinds)]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    return directory


@pytest.fixture
def changed(encoder, tmp_path):
    """A copy of the encoder with one JSON file changed: ``changed(name, value)``."""

    def make(name, value):
        for file in (file for file in encoder.rglob("*") if file.is_file()):
            target = tmp_path / file.relative_to(encoder)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
        (tmp_path / name).write_text(json.dumps(value))
        return tmp_path

    return make


def test_equals_the_mean_of_the_stock_model_text_by_text(encoder):
    embedder = Embedder(encoder)
    found = embedder(TEXTS)
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), BertTokenizerFast.from_pretrained(encoder)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = tokenizer(text)["input_ids"]
        ids = ids if len(ids) <= 16 else [*ids[:15], tokenizer.sep_token_id]
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].double().mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert embedder.cut == 1 and found.dtype == np.float32
    alone = np.concatenate([embedder([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, found, atol=1e-6)
    many = embedder(TEXTS * 150)  # several batches, with a bar
    np.testing.assert_allclose(many, np.tile(found, (150, 1)), atol=1e-6)


def test_the_key_is_of_weights_and_limit(encoder, changed):
    key = Embedder(encoder).key
    assert Embedder(changed("README.json", {})).key == key
    assert Embedder(changed("sentence_bert_config.json", {"max_seq_length": 8})).key != key


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "with pooling pooling_mode_cls_token"),
        ("modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "2"}], "Transformer, Dense"),
        ("modules.json", {}, "no modules.json"),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}}, r"begin with a prompt \(query\)"),
    ],
)
def test_an_encoder_that_asks_for_more_is_refused(changed, name, value, message):
    with pytest.raises(ModelError, match=message):
        Embedder(changed(name, value))


def test_weights_that_are_not_in_the_files_are_refused(changed, encoder):
    config = json.loads((encoder / "config.json").read_text())
    with pytest.raises(ModelError, match="16 weights of the embedder are not in its files: encoder"):
        Embedder(changed("config.json", {**config, "num_hidden_layers": 3}))
    directory = changed("config.json", config)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        Embedder(directory)


def test_the_wheel_is_pinned_by_hash(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.retrieval.embed.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(MissingPackage, match="not installed"):
        load_embedder("all-MiniLM-L6-v2")
    monkeypatch.setattr("tunesmith.retrieval.embed.MINILM_PACKAGE", "stand_in_for_minilm")
    package = tmp_path / "stand_in_for_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ModelError, match="expected 53aa51172d14: not the original weights"):
        load_embedder("all-MiniLM-L6-v2")


def test_a_paraphrase_is_nearer_than_another_subject():
    pytest.importorskip(MINILM_PACKAGE)
    question, paraphrase, other = load_embedder("all-MiniLM-L6-v2")(
        ["How do I get my money back?", "refund policy of the shop", "The weather is fine today"]
    )
    assert question @ paraphrase > 0.4 > 0.1 > question @ other


def test_a_recipes_embedder_ranks_beside_the_words(encoder, tmp_path, talk):
    recipe = load_recipe(write_recipe(tmp_path, tmp_path / "no-model", {"evaluate.retrieval.embedder": str(encoder)}))
    corpus = Corpus("documents", TEXTS, [f"d#{i}" for i in range(len(TEXTS))], [])
    store = open_store(recipe, tmp_path / "store.sqlite", corpus)
    assert "read 1 of 7 passages in part" in talk()
    assert len(store.search("car", 9)) == 7 and store.search("shop nine", 1)[0].id == "d#1"  # meaning ranks all of them
    store.close()


def test_qdrant_finds_what_the_exact_scan_finds(encoder):
    pytest.importorskip("qdrant_client")
    from tunesmith.retrieval.qdrant import QdrantStore, build_qdrant

    embedder = Embedder(encoder)
    texts = TEXTS + TEXTS[:2]  # equal vectors
    ids = [f"d#{i}" for i in range(len(texts))]
    oracle = SqliteStore(":memory:", embedder)
    oracle.add(texts, ids)
    store = build_qdrant(":memory:", texts, ids, embedder)
    assert len(store) == len(texts)
    for query in ("a red car", "nine", ""):
        hits = store.search(query, 4)
        assert [hit.id for hit in hits] == [ids[number - 1] for number in oracle.by_meaning(query, 4)]
        assert all(hit.text == texts[ids.index(hit.id)] for hit in hits)
    store.delete()
    assert store.search("nine", 4) == [] and QdrantStore(":memory:", "none", embedder).search("nine", 4) == []
    store.close()


def test_passages_are_uploaded_once_and_a_broken_upload_is_made_anew(encoder, monkeypatch):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    from tunesmith.retrieval.qdrant import build_qdrant

    monkeypatch.setattr("qdrant_client.QdrantClient", lambda **_: client)
    embedder = Embedder(encoder)
    build_qdrant(":memory:", TEXTS, list("abcdefg"), embedder)
    monkeypatch.setattr("tunesmith.retrieval.qdrant.QdrantStore.add", lambda *_: pytest.fail("uploaded again"))
    assert build_qdrant(":memory:", TEXTS, list("abcdefg"), embedder).search("nine", 1)
    monkeypatch.undo()
    monkeypatch.setattr("qdrant_client.QdrantClient", lambda **_: client)
    (collection,) = [found.name for found in client.get_collections().collections]
    client.delete(collection, [6])
    assert len(build_qdrant(":memory:", TEXTS, list("abcdefg"), embedder)) == 7
    build_qdrant(":memory:", TEXTS[:3], list("abc"), embedder)
    assert len(client.get_collections().collections) == 2  # other passages, another collection
    client.close()


def test_a_server_that_is_not_there(encoder):
    pytest.importorskip("qdrant_client")
    from tunesmith.retrieval.qdrant import build_qdrant

    with pytest.raises(RunError, match="does not answer as a Qdrant server"):
        build_qdrant("http://127.0.0.1:9", ["a"], ["a"], Embedder(encoder))


def test_qdrant_without_its_client(encoder, monkeypatch):
    from tunesmith.retrieval.qdrant import QdrantStore

    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingPackage, match="qdrant-client, which is not installed"):
        QdrantStore(":memory:", "x", Embedder(encoder))
