import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import hardware
from tunesmith.errors import RunError
from tunesmith.kernels.attention import Span
from tunesmith.train import documents as module
from tunesmith.train.documents import Documents, DocumentWriter, cached_tokens, make_documents, make_pack

document = st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 1)), min_size=1, max_size=12)


def _rows(rendered):
    return [(f"row-{i}", [t for t, _ in tokens], [s for _, s in tokens]) for i, tokens in enumerate(rendered)]


def _write(path, rows):
    with DocumentWriter(path) as writer:
        writer.add(rows)


def _naive_pack(rows, chosen):
    """Token by token: ids, positions, borders, predicting positions, targets."""
    ids, position, borders, predict, target = [], [], [0], [], []
    for d in chosen:
        _, tokens, supervised = rows[d]
        for t, (token, flag) in enumerate(zip(tokens, supervised, strict=True)):
            if t and flag:
                predict.append(len(ids) - 1)
                target.append(token)
            ids.append(token)
            position.append(t)
        borders.append(len(ids))
    return ids, position, borders, predict, target


@given(st.lists(document, min_size=1, max_size=9), st.data())
def test_packs_from_file_and_memory_equal_packs_made_token_by_token(rendered, data):
    rows = _rows(rendered)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5, unique=True))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_ROWS", data.draw(st.integers(1, 4)))
        patch.setattr(module, "BATCH_TOKENS", data.draw(st.integers(1, 30)))
        _write(Path(folder) / "x.arrow", rows)
        from_file = Documents.open(Path(folder) / "x.arrow")
        assert [from_file.row_id(document) for document in range(len(from_file))] == [row_id for row_id, _, _ in rows]
        for documents in (from_file, make_documents((ids, np.array(flags, bool)) for _, ids, flags in rows)):
            assert len(documents) == len(rows) and documents.lengths.tolist() == [len(ids) for _, ids, _ in rows]
            assert documents.supervised_tokens == sum(sum(flags) for _, _, flags in rows)
            pack = make_pack(documents, chosen)
            ids, position, borders, predict, target = _naive_pack(rows, chosen)
            assert pack.ids_1T.tolist() == [ids] and pack.position_1T.tolist() == [position]
            assert pack.spans == [Span(a, b, a, a) for a, b in pairwise(borders)]
            assert pack.predict_N.tolist() == predict and pack.target_N.tolist() == target
            assert {t.dtype for t in (pack.ids_1T, pack.position_1T, pack.predict_N, pack.target_N)} == {torch.int64}


def _resident():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def test_a_file_is_not_read_into_memory(tmp_path):
    """In a process of its own: where other tests have run, what they freed moves the figures."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def write_and_open(tmp_path):
    flags = np.zeros(16_384, np.int8)
    flags[9_000:] = 1
    before = _resident()
    with DocumentWriter(tmp_path / "big.arrow") as writer:
        for i in range(3200):
            writer.add([(str(i), np.full(16_384, i, np.int32), flags)])
    # buffers of one record batch of 16 MB, in their several forms
    assert (tmp_path / "big.arrow").stat().st_size > 200e6 and _resident() - before < 100e6
    before, allocated = _resident(), pa.total_allocated_bytes()
    documents = Documents.open(tmp_path / "big.arrow")
    pack = make_pack(documents, (5, 3100))
    assert pack.ids_1T[0, [0, -1]].tolist() == [5, 3100] and len(pack.target_N) == 2 * (16_384 - 9_000)
    assert documents.lengths.sum() == 3200 * 16_384
    assert _resident() - before < 20e6 and pa.total_allocated_bytes() - allocated < 1e6


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    _write(tmp_path / "x.arrow", _rows([[(1, 1)]]))
    for stop in (KeyboardInterrupt, ValueError):
        with pytest.raises(stop), DocumentWriter(tmp_path / "x.arrow") as writer:
            writer.add(_rows([[(2, 1)]] * 5000))
            raise stop
        assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]
        assert Documents.open(tmp_path / "x.arrow").ids(0).tolist() == [1]
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        _write(tmp_path / "file" / "x.arrow", [])


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(RunError, match="no rendered documents"):
        Documents.open(tmp_path / "x.arrow")
    _write(tmp_path / "x.arrow", _rows([[(7, 1)] * 50]))
    content = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(content[:-20])
    with pytest.raises(RunError, match=r"x\.arrow: damaged"):
        Documents.open(tmp_path / "x.arrow")
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), pa.schema({"row": pa.string()})):
        pass
    with pytest.raises(RunError, match="not a file of rendered documents"):
        Documents.open(tmp_path / "x.arrow")


def test_no_rows_make_a_file_of_no_documents(tmp_path):
    _write(tmp_path / "x.arrow", [])
    documents = Documents.open(tmp_path / "x.arrow")
    assert len(documents) == 0 == documents.supervised_tokens and documents.lengths.shape == (0,)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "tokens" / "k.arrow"


def _maker(made):
    def make(path):
        made.append(path)
        _write(path, _rows([[(7, 1), (8, 0), (9, 1)]] * 3))

    return make


def test_tokens_are_made_once_and_shared_by_runs(tmp_path, cache, monkeypatch):
    made, targets = [], [tmp_path / f"run{i}" / "train.arrow" for i in range(3)]
    assert not cached_tokens("k", targets[0], _maker(made))
    assert cached_tokens("k", targets[1], _maker(made)) and cached_tokens("k", targets[1], _maker(made))
    assert made == [cache] and cache.stat().st_nlink == 3

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert cached_tokens("k", targets[2], _maker(made)) and cache.stat().st_nlink == 3
    assert targets[2].read_bytes() == cache.read_bytes()
    assert [path.name for target in targets for path in target.parent.iterdir()] == ["train.arrow"] * 3
    assert not cached_tokens("other", targets[2], _maker(made)) and len(made) == 2


def test_a_damaged_cache_is_noticed_at_every_byte_that_counts_and_made_again(tmp_path, cache, talk):
    made = []
    cached_tokens("k", tmp_path / "train.arrow", _maker(made))
    whole = cache.read_bytes()
    tokens = whole.index(np.array([7, 8, 9, 7, 8, 9], np.int32).tobytes())
    spans = whole.index(np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32).tobytes())
    damaged = [whole[: len(whole) // 2], whole[:-1], b""]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (tokens, spans + 4, whole.index(b"row-1"))]
    for number, content in enumerate(damaged, start=1):
        cache.unlink()
        cache.write_bytes(content)
        assert not cached_tokens("k", tmp_path / "train.arrow", _maker(made))
        assert len(made) == number + 1 and (tmp_path / "train.arrow").read_bytes() == whole
        assert "damaged" in talk()


if __name__ == "__main__":
    write_and_open(Path(sys.argv[1]))
