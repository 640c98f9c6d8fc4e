import hashlib
import json
import platform

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from llama_quantize_oracle import ANSWERS, CASES, CHUNKS, DATASET, importance, told, write_source

from tunesmith import hardware
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write import quantize as quantize_module
from tunesmith.checkpoints.gguf_write.convert import describe
from tunesmith.checkpoints.gguf_write.quantize import ImatrixOrigin, quantize
from tunesmith.checkpoints.gguf_write.types import metadata_of, nbytes, plan_types, sources_of
from tunesmith.errors import ExportError

ORIGIN = ImatrixOrigin("imatrix.gguf", DATASET, CHUNKS)


def _write(path, tensors, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_head_count(4)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the answers are those of x86-64, whose products are not fused")
@pytest.mark.parametrize("name", CASES)
def test_files_are_those_of_llama_quantize(name, tmp_path):
    """Byte for byte: metadata, types, order, blocks. Made by llama_quantize_oracle.py, which says how."""
    answers = json.loads(ANSWERS.read_text(encoding="utf-8"))[name]
    source, target = tmp_path / "source.gguf", tmp_path / "made.gguf"
    write_source(source, name)
    assert told(source) == answers["source"], "other inputs, not another quantiser"
    matrix = importance(name)
    for file_type in CASES[name].file_types:
        for label, arguments in ((file_type, ()), (f"{file_type}, imatrix", (matrix, ORIGIN))):
            if answers[label] == "refused":
                with pytest.raises(ExportError, match="rows of"):
                    quantize(source, target, file_type, *arguments)
                assert not target.exists()
            else:
                quantize(source, target, file_type, *arguments)
                same = hashlib.sha256(target.read_bytes()).hexdigest() == answers[label].split()[0]
                assert same, (label, told(target), answers[label])
                target.unlink()


def test_a_file_has_the_planned_size_and_is_described_as_measured(tmp_path):
    name = "4 experts, one shared"
    write_source(tmp_path / "f16.gguf", name)
    reader = GgufReader(tmp_path / "f16.gguf")
    sources = sources_of(reader)
    types = plan_types(sources, "Q4_K_M", metadata_of(reader))
    facts = quantize(tmp_path / "f16.gguf", tmp_path / "q.gguf", "Q4_K_M")
    tensors = GgufReader(tmp_path / "q.gguf").tensors
    assert nbytes(sources, types) == sum(int(t.n_bytes) for t in tensors)
    assert facts == describe(tmp_path / "q.gguf") and facts.bytes == (tmp_path / "q.gguf").stat().st_size
    assert facts.bits_per_weight == pytest.approx(8 * nbytes(sources, types) / facts.weights, abs=1e-3)
    assert sum(facts.types.values()) == facts.weights == sum(int(t.n_elements) for t in tensors)


def test_blocks_decode_to_the_weights_and_importance_moves_the_error(tmp_path):
    """The two halves of the columns matter differently: with a matrix the error of the important half falls."""
    x = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    source = _write(tmp_path / "f32.gguf", {"blk.0.attn_q.weight": x})
    matrix = {"blk.0.attn_q.weight": np.where(np.arange(512) % 2, 100.0, 0.01).astype(np.float32)}

    def errors(file_type, importance):
        quantize(source, tmp_path / "q.gguf", file_type, importance)
        (tensor,) = GgufReader(tmp_path / "q.gguf").tensors
        wrong = (gguf.dequantize(tensor.data, tensor.tensor_type).reshape(x.shape) - x) ** 2
        return np.sqrt(wrong[:, 1::2].mean()), np.sqrt(wrong[:, ::2].mean())

    bounds = {"Q8_0": 0.006, "Q6_K": 0.02, "Q5_K_M": 0.04, "Q4_K_M": 0.08, "Q4_0": 0.1, "IQ4_XS": 0.08, "Q3_K_M": 0.16}
    for file_type, bound in bounds.items():
        assert max(errors(file_type, None)) < bound, file_type
    for file_type in ("Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M"):
        assert errors(file_type, matrix)[0] < 0.95 * errors(file_type, None)[0], file_type


def test_a_stack_is_quantised_expert_by_expert_with_its_own_importance(tmp_path):
    rng = np.random.default_rng(3)
    experts, columns = 3, 256
    x = rng.normal(size=(experts, 8, columns)).astype(np.float32)
    weights = rng.uniform(0.01, 9, (experts, columns)).astype(np.float32)
    stack = _write(tmp_path / "stack.gguf", {"blk.0.ffn_up_exps.weight": x})
    quantize(stack, tmp_path / "q.gguf", "Q4_K_M", {"blk.0.ffn_up_exps.weight": weights})
    (whole,) = GgufReader(tmp_path / "q.gguf").tensors
    for e in range(experts):
        one = _write(tmp_path / f"{e}.gguf", {"blk.0.ffn_up.weight": x[e]})
        quantize(one, tmp_path / "one.gguf", "Q4_K_M", {"blk.0.ffn_up.weight": weights[e]})
        (alone,) = GgufReader(tmp_path / "one.gguf").tensors
        assert np.array_equal(np.asarray(whole.data[e]).ravel(), np.asarray(alone.data).ravel())


def test_pieces_and_threads_change_no_byte(tmp_path, monkeypatch):
    write_source(tmp_path / "f16.gguf", "8 experts")
    written = set()
    for piece, threads in ((2**20, 1), (700, 3), (1, 2)):
        monkeypatch.setattr(quantize_module, "PIECE", piece)
        monkeypatch.setattr(hardware, "cpu_count", lambda threads=threads: threads)
        quantize(tmp_path / "f16.gguf", tmp_path / "q.gguf", "IQ4_XS", importance("8 experts"))
        written.add((tmp_path / "q.gguf").read_bytes())
    assert len(written) == 1


def test_what_cannot_be_quantised_is_refused_and_nothing_is_left(tmp_path, capfd):
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float16)
    name, target = "blk.0.attn_q.weight", tmp_path / "q.gguf"
    source = _write(tmp_path / "f16.gguf", {name: x})
    ones = np.ones(256, np.float32)
    for matrix, message in (
        ({name: ones[:128]}, r"shape \(128,\), its tensor \(1, 256\)"),
        ({name: ones * np.nan}, "not finite"),
        ({"blk.9.attn_q.weight": ones}, "no entry of the importance matrix"),
    ):
        with pytest.raises(ExportError, match=message):
            quantize(source, target, "Q4_K_M", matrix)
    broken = _write(tmp_path / "nan.gguf", {name: np.where(x == x.max(), np.float16(np.nan), x)})
    with pytest.raises(ExportError, match=f"{name} has weights that are not finite"):
        quantize(broken, target, "Q4_K_M")
    capfd.readouterr()  # llama.cpp names the block on stderr
    quantize(source, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(ExportError, match="Q8_0 already"):
        quantize(tmp_path / "q8.gguf", target, "Q4_0")
    assert {p.name for p in tmp_path.iterdir()} == {"f16.gguf", "nan.gguf", "q8.gguf"}


def test_tensors_without_importance_are_told(tmp_path, talk):
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float16)
    tensors = {"token_embd.weight": x, "blk.0.attn_q.weight": x, "blk.0.attn_k.weight": x}
    source = _write(tmp_path / "f16.gguf", tensors)
    quantize(source, tmp_path / "q.gguf", "Q4_K_M", {"blk.0.attn_q.weight": np.ones(256, np.float32)})
    assert "1 of 3 tensors without importance, first blk.0.attn_k.weight" in talk()
    reader = GgufReader(tmp_path / "q.gguf")
    assert reader.fields["quantize.imatrix.entries_count"].contents() == 1
    assert "quantize.imatrix.file" not in reader.fields


def test_q8_0_equals_the_gguf_packages_own_quantiser(tmp_path):
    """A second implementation as oracle, on every machine: the Python one of the gguf package, byte for byte."""
    x = np.random.default_rng(1).normal(size=(33, 64)).astype(np.float16)
    quantize(_write(tmp_path / "f16.gguf", {"blk.0.attn_q.weight": x}), tmp_path / "q8.gguf", "Q8_0")
    (tensor,) = GgufReader(tmp_path / "q8.gguf").tensors
    assert np.array_equal(np.asarray(tensor.data), gguf.quantize(x.astype(np.float32), Type.Q8_0))
