"""The bytes of stored layers, by every way to them; and what a store refuses."""

import errno
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from shared import ROOT
from tunesmith.errors import ModelError, RunError
from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.memory import reading, store
from tunesmith.memory.disk import stored_layer_bytes
from tunesmith.memory.order import Order
from tunesmith.memory.reading import FileReader, MappedFile, PinnedArenas, arena_sizes, page_aligned
from tunesmith.memory.store import Store, stored

SHAPES = [((3, 70), (129, 64)), ((300, 257),), (), ((5, 7), (64, 640))]


def _layers():
    generator = torch.Generator().manual_seed(0)
    for number, shapes in enumerate(SHAPES):
        yield [
            (f"{number}.{place}", quantize_nf4(torch.randn(shape, generator=generator)), torch.bfloat16)
            for place, shape in enumerate(shapes)
        ]


def _without_direct_io(path, flags, open_file=os.open):
    if flags & os.O_DIRECT:
        raise OSError(22, "Invalid argument")
    return open_file(path, flags)


@pytest.fixture
def kept(tmp_path):
    return stored(tmp_path / "streams" / "abc", 200_000, _layers())


@pytest.mark.parametrize("way", ["mapped", "direct", "plain", "pinned"])
def test_every_way_gives_the_bytes_that_were_quantised(kept, way, monkeypatch, caplog):
    if way == "plain":
        monkeypatch.setattr(os, "open", _without_direct_io)
    if way == "pinned":  # arenas of two sectors: layers lie over their borders
        monkeypatch.setattr(reading, "LARGEST_ARENA", 8192)
        monkeypatch.setattr(reading, "SMALLEST_ARENA", 4096)
        monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, f=torch.empty, **k: f(*a, **k))
    source = {"mapped": MappedFile, "pinned": lambda s: PinnedArenas(s, torch.device("cpu"))}.get(way, FileReader)(kept)
    assert ("has no direct I/O (Invalid argument)" in caplog.text) == (way == "plain")
    staging_b = page_aligned(kept.largest, pinned=False) if way in ("direct", "plain") else None
    for number, weights in enumerate(_layers()):
        layer_b = torch.cat([*source.pieces(number, staging_b), torch.empty(0, dtype=torch.uint8)])
        assert len(layer_b) == kept.layers[number].nbytes
        for place, (name, q, _) in zip(kept.layers[number].weights, weights, strict=True):
            found = place.parts(layer_b)
            assert (place.name, found.offset, found.shape) == (name, q.offset, q.shape)
            for part in ("packed", "absmax", "nested_absmax", "nested_map"):
                assert torch.equal(vars(found)[part], vars(q)[part]), part


@pytest.mark.parametrize("nbytes", [1, 2**20, 2**20 + 1, 9_930_000_000, 35_310_000_000])
def test_arenas_are_powers_of_two_and_hardly_too_large(nbytes):
    sizes = arena_sizes(nbytes)
    assert all(size.bit_count() == 1 for size in sizes) and 0 <= sum(sizes) - nbytes < 2**20


def test_a_store_is_written_once_and_needs_room(kept, tmp_path, monkeypatch):
    def again():
        raise AssertionError("it is there")
        yield

    assert stored(kept.directory, 200_000, again()) == kept == Store.open(kept.directory)
    assert [layer.start % 4096 for layer in kept.layers] == [0] * 4 and kept.layers[2].nbytes == 0
    counts = [[math.prod(place.shape) for place in layer.weights] for layer in kept.layers]
    assert kept.nbytes == sum(map(stored_layer_bytes, counts))
    monkeypatch.setattr(store, "free_bytes", lambda _: 1000)
    with pytest.raises(ModelError, match=r"1\.00 kB are free, but the layers to stream take 1\.00 MB") as caught:
        stored(tmp_path / "streams" / "other", 1_000_000, again())
    assert "XDG_CACHE_HOME" in caught.value.hint and not (tmp_path / "streams" / "other").exists()


def test_a_store_that_is_another_ones_or_torn_is_named(kept):
    moved = kept.directory.rename(kept.directory.with_name("other"))
    with pytest.raises(ModelError, match=r"other: holds the layers of abc") as caught:
        Store.open(moved)
    assert f"remove {moved}" in caught.value.hint
    (moved / store.INDEX).write_text("{")
    with pytest.raises(ModelError, match="the stored layers cannot be read"):
        Store.open(moved)


def test_a_disk_that_fills_up_or_fails_is_named_and_leaves_nothing(kept, tmp_path, monkeypatch):
    def failing(number):
        def fail(*_):
            raise OSError(number, os.strerror(number))

        return fail

    def full():
        yield next(_layers())
        failing(errno.ENOSPC)()

    with pytest.raises(RunError, match="new: storing the layers: the disk is full"):
        stored(tmp_path / "streams" / "new", 1000, full())
    assert [path.name for path in sorted((tmp_path / "streams").iterdir())] == [".abc.lock", ".new.lock", "abc"]
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with pytest.raises(ModelError, match=r"layers\.bin: layer 1 cannot be read: Input/output error") as caught:
        FileReader(kept).read(1, page_aligned(kept.largest, pinned=False))
    assert f"remove {kept.directory}" in caught.value.hint


def test_the_order_is_a_trainings_until_another_one_is_seen():
    order, guessed = Order(1, 5), []
    for layer in [1, 2, 3, 4, 3, 2, 1, 2, 3, 4, 1, 2, 3, 4, 1]:
        guess = order.next(1)[0]
        guessed.append(guess == layer)
        order.turn(layer)
    assert guessed == [True] * 10 + [False] + [True] * 4
    assert order.next(3) == [2, 3, 4]


TRAIN = """
import gc, resource, sys
from pathlib import Path
from tunesmith import hardware
from tunesmith.data.pack import Plan
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_model
from tunesmith.models.placement import Placement
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora, TrainSettings
from tunesmith.train.documents import make_documents
from tunesmith.train.loop import train_steps

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10

def train(resident):
    model = load_model(Path(sys.argv[1]), "bf16", "nf4", placement=Placement(resident_layers=resident))
    layers = add_lora(model, Lora(r=2, dropout=0.0), 0)
    fuse(model)
    documents = make_documents([([5 + n] * 16, [0] * 8 + [1] * 8) for n in range(2)])
    keys = {"learning_rate": 1e-3, "tokens_per_step": 32, "num_train_epochs": 1, "max_length": 32, "recompute": "layer"}
    steps = Plan(documents.lengths, 1, 32, 32, 0)
    return [record.loss for record in train_steps(model, layers, documents, steps, TrainSettings(**keys, ranks=1), 0)]

expected = train(0)  # quantises, a layer at a time; imports and compiles what a step needs
gc.collect()
hardware.release_freed_memory()
limit = held() + (72 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print("same" if train(int(sys.argv[2])) == expected else "other")
"""


@pytest.mark.slow
def test_a_model_larger_than_memory_trains_on_a_cpu(tmp_path):
    """A limit on what is allocated (a mapped file is none of it) that a step fits, and 104 MB of NF4 beside it do not.

    A step takes between 24 and 48 MB.
    """
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16}
    config = LlamaConfig(**sizes, vocab_size=64, max_position_embeddings=64, tie_word_embeddings=True)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    noise = torch.randn(4096 * 1024, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    files = {name: f"{name}.safetensors" for name in model.state_dict() if name != "lm_head.weight"}
    for name, file in files.items():  # a file a tensor: safetensors maps files as memory of the process
        shape = model.get_parameter(name).shape
        tensor = noise[: shape.numel()].view(shape) + (len(shape) == 1)
        save_file({name: tensor}, tmp_path / file, metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    config.save_pretrained(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "XDG_CACHE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    found = {}
    for resident in ("0", "12"):
        command = [sys.executable, "-c", TRAIN, str(tmp_path), resident]
        found[resident] = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found["0"].stdout == "same\n", found["0"].stderr[-3000:]
    assert not found["12"].stdout and "allocate memory" in found["12"].stderr, found["12"].stderr[-3000:]
