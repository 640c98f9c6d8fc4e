"""A streamed model computes the bits of a resident one, whatever passes through its slots."""

import gc
import threading
import time
from dataclasses import replace

import pytest
import torch

from tiny_families import TINY, adapted, documents, random_model
from tunesmith.bits.mixed import MixedBase
from tunesmith.errors import ModelError
from tunesmith.families import FAMILIES
from tunesmith.layers.context import StepContext
from tunesmith.memory import stream
from tunesmith.memory.reading import FileReader, MappedFile
from tunesmith.memory.ring import Ring, ThreadCopier
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, decoder, load_model
from tunesmith.models.placement import Placement
from tunesmith.models.recompute import recompute
from tunesmith.models.streaming import layers_of
from tunesmith.train import lockstep
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import mean_loss, step_gradients

LAYERS = 6
CPU = torch.device("cpu")
PACKS = ((0, 1), (2,), (3,))
# family, slots, resident layers, dropout, what is recomputed
CASES = [
    ("llama", 2, 0, 0.0, "none"),
    ("llama", 2, 0, 0.2, "layer"),
    ("llama", 3, 1, 0.2, "layer"),
    ("qwen3", 2, 3, 0.2, "mlp"),
    ("gemma3", 3, 0, 0.2, "layer"),
    ("gemma4-e", 2, 1, 0.2, "layer"),  # layers that share keys: pack after pack
    ("gemma4-26b", 2, 0, 0.2, "layer"),
    ("gpt_oss", 3, 2, 0.0, "layer"),
    ("phi3", 2, 0, 0.2, 2),
    ("unknown", 2, 0, 0.2, "layer"),  # nothing is fused
]


class Poisoning(ThreadCopier):
    """What a slot held is NaN from the moment on at which it is to hold something else, and the copy takes its time."""

    def order(self, slot, layer, fill):
        slot.bytes_b.fill_(0xFF)
        super().order(slot, layer, fill)

    def copy(self, slot, layer, fill, pieces):
        time.sleep(0.001)
        super().copy(slot, layer, fill, pieces)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``load(family, resident, slots)``: some tiny layers, fused, with adapters; streamed through a ring if asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name, resident="all", slots=2, copier=Poisoning, dropout=0.2, source=MappedFile):
        directory = tmp_path / name
        if not directory.exists():
            config = TINY[name].config
            if config.num_hidden_layers < 4:
                facts = config.to_dict() | {"num_hidden_layers": LAYERS}
                if kinds := facts.get("layer_types"):
                    facts["layer_types"] = (kinds * LAYERS)[:LAYERS]
                config = type(config)(**facts)
            random_model(config).save_pretrained(directory)

        def ring(store, stay):
            return Ring(copier(source(store), None), CPU, stay, slots)

        monkeypatch.setattr(stream, "MappedLayers", ring)
        model = load_model(directory, "fp32", "nf4", placement=Placement(resident_layers=resident))
        layers = adapted(model, dropout=dropout)
        fuse(model)
        return model, layers

    return make


def packs_of():
    made = make_documents(documents())
    return [make_pack(made, chosen) for chosen in PACKS]


def gradients(model, layers, policy, packs=None):
    """Loss and gradients of a step, and the dev loss before it."""
    packs = packs_of() if packs is None else packs
    with attention(model, PACKED):
        dev = mean_loss(model, packs)
        with recompute(model, policy):
            loss, _ = step_gradients(model, packs, StepContext(seed=3, step=5))
    return [dev, loss], {
        f"{name}.{key}": p.grad.clone()
        for name, layer in layers.items()
        for key, p in layer.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize(("family", "slots", "resident", "dropout", "policy"), CASES)
def test_gradients_are_those_of_a_resident_model_to_the_bit(load, family, slots, resident, dropout, policy, monkeypatch):
    expected = gradients(*load(family, dropout=dropout), policy)
    together = []
    monkeypatch.setattr(
        lockstep, "_recorded", lambda m, p, d, f=lockstep._recorded: together.append(torch.is_grad_enabled()) or f(m, p, d)
    )
    model, layers = load(family, resident, slots, dropout=dropout)
    found = gradients(model, layers, policy)
    assert found[0] == expected[0] and found[1].keys() == expected[1].keys()
    assert [name for name, grad in expected[1].items() if not torch.equal(grad, found[1][name])] == []
    assert all(grad.isfinite().all() for grad in found[1].values())
    plain = family != "gemma4-e"
    assert together == [False] * plain + [True] * (plain and policy == "layer"), "which packs went through the layers together"


@pytest.mark.parametrize(("slots", "resident"), [(2, 0), (3, 0), (2, 2)])
def test_bytes_that_are_copied_are_those_of_the_model_less_what_the_slots_still_hold(load, slots, resident):
    model, layers = load("llama", resident, slots)
    ring = layers_of(model)
    layer, streamed = ring.store.largest, LAYERS - resident
    gradients(model, layers, "layer")
    packs, first = packs_of(), ring.copied
    gradients_of_each = []
    for chosen in ([packs[0]], packs):  # one pack, then three: the same traffic
        with attention(model, PACKED), recompute(model, "layer"):
            step_gradients(model, chosen, StepContext(seed=3, step=5))  # the order is found out
            before, stalls = ring.copied, ring.stalls
            step_gradients(model, chosen, StepContext(seed=3, step=6))
        gradients_of_each.append(ring.copied - before)
        assert ring.stalls == stalls
    assert first and gradients_of_each == [2 * (streamed - slots) * layer] * 2


class NotPlain(torch.nn.ModuleList):
    """Layers of a decoder that does something to the hidden states between them."""

    def __iter__(self):
        for layer in super().__iter__():
            yield lambda hidden, *positional, layer=layer, **named: layer(hidden * 1.0, *positional, **named)


@pytest.mark.parametrize(
    ("family", "policy", "plain", "reason"),
    [
        ("llama", "layer", False, "does something to the hidden states between two layers"),
        ("llama", "mlp", True, "train.recompute: layer fetches it once"),
        ("gemma4-e", "layer", True, "keys and values of earlier ones"),
    ],
)
def test_packs_that_go_one_by_one_are_said_once_with_the_reason(load, family, policy, plain, reason, caplog):
    expected = gradients(*load(family), policy)
    model, layers = load(family, 0)
    if not plain:
        decoder(model).layers = NotPlain(list(decoder(model).layers))
    found = [gradients(model, layers, policy) for _ in range(2)]  # gradients are added
    assert caplog.text.count("every pack of a step fetches the layers for itself") == 1 and reason in caplog.text
    assert found[0][0] == expected[0]
    assert all(torch.equal(grad, found[0][1][name]) for name, grad in expected[1].items())


def test_layers_read_from_the_disk_give_the_same_gradients_and_end_with_their_model(load):
    before = set(threading.enumerate())
    expected = gradients(*load("llama"), "layer")
    model, layers = load("llama", 1, source=FileReader)
    found = gradients(model, layers, "layer")
    assert found[0] == expected[0] and all(torch.equal(grad, found[1][name]) for name, grad in expected[1].items())
    file = layers_of(model).store.file
    with file.open("r+b") as opened:
        opened.truncate(3 * layers_of(model).store.largest + 512)
    with pytest.raises(ModelError, match=r"ends at byte [\d,]+, expected [\d,]+") as caught:
        gradients(model, layers, "layer")
    assert f"remove {file.parent}" in caught.value.hint
    copiers = [thread for thread in set(threading.enumerate()) - before if thread.name == "layer copier"]
    assert len(copiers) == 1
    del model, layers, caught
    gc.collect()
    copiers[0].join(10)
    assert not copiers[0].is_alive()


def test_only_layers_in_nf4_are_streamed(load, tmp_path, monkeypatch):
    load("llama")
    streamed, shared, mixed = Placement(resident_layers=0), Placement(shard=True), MixedBase({}, {})
    for base, forms, placement, message in (
        (None, None, streamed, "train.resident_layers: 0: .* kept in bf16\nhint: base: nf4, or train.resident_layers: all"),
        ("bf16", None, shared, "train.shard: true: .* kept in bf16\nhint: base: nf4, or train.shard: false"),
        ("nf4", mixed, streamed, "base_budget gives .*\nhint: leave base_budget out, or train.resident_layers: all"),
        ("nf4", mixed, shared, "base_budget gives .*\nhint: leave base_budget out, or train.shard: false"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / "llama", "bf16", base, placement=placement, mixed=forms)
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], never_quantized=("layers",)))
    with pytest.raises(ModelError, match=r"no decoder layers with weights in NF4\b.*\nhint: train.resident_layers: all"):
        load_model(tmp_path / "llama", "fp32", "nf4", placement=streamed)


def test_a_slot_that_holds_something_else_is_an_error_and_no_gradient(load):
    class Wrong(ThreadCopier):
        """Prefetches the wrong layer once."""

        def copy(self, slot, layer, fill, pieces):
            super().copy(slot, 1 if fill == 5 else layer, fill, pieces)

    model, layers = load("llama", 0, 2, Wrong)
    with pytest.raises(ModelError, match=r"from fill 5 of its slot, which holds \(layer, fill\) \(1, 5\)"):
        gradients(model, layers, "none")


def test_a_damaged_store_is_named(load, tmp_path):
    model, _ = load("llama", 0)
    file = layers_of(model).store.file
    with file.open("r+b") as opened:
        opened.seek(3 * layers_of(model).store.largest)
        opened.write(b"\x55" * 8)
    model, layers = load("llama", 0)
    with pytest.raises(ModelError, match="layer 3 has the checksum"):
        gradients(model, layers, "none")
    with file.open("ab") as opened:
        opened.write(b"more")
    with pytest.raises(ModelError, match="expected"):
        load("llama", 0)
