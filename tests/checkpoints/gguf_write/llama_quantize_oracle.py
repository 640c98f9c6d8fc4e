"""What ``llama-quantize`` makes of small random files: the inputs, and the way to ask it again.

    python tests/export/llama_quantize_oracle.py PATH_TO_LLAMA_QUANTIZE     # rewrites llama_quantize_oracle.json

llama-quantize reads names, shapes and keys, never whether they make a model, so a tensor has four rows and a file of 80 layers
is small. The values are drawn by a numpy generator; the JSON holds the sha256 of each input too, so that a change of the
generator is not taken for one of the quantiser. Made with llama.cpp b10605 on x86-64, where no multiplication is fused.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from tunesmith.checkpoints.gguf_reader import GgufReader

ANSWERS = Path(__file__).with_suffix(".json")
FILE_TYPES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")
MIXED = ("Q4_K_M", "Q3_K_M")  # whose values the largest models have more bits
ROWS = 4
DATASET = "prompts"
CHUNKS = 7


@dataclass(frozen=True)
class Case:
    """A file: its architecture, layers, widths, and what is peculiar to it."""

    architecture: str = "llama"
    layers: int = 16
    hidden: int = 256
    inner: int = 512
    experts: int = 0
    key_heads: int = 8  # of 8
    tied: bool = True
    parts: tuple[str, ...] = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    kind: str = "f16"
    keys: dict[str, int] = field(default_factory=dict)
    file_types: tuple[str, ...] = FILE_TYPES


ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
ROUTED = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
GEMMA4 = {
    "attention.sliding_window": 64,
    "embedding_length_per_layer_input": 32,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "attention.sliding_window_pattern": 2,
    "attention.shared_kv_layers": 5,
}
CASES = {
    "dense, 2 layers, two queries a key": Case(layers=2, key_heads=4),
    "dense, 16 layers, untied, grouped": Case(tied=False, key_heads=2),
    "dense, 32 layers, grouped, bf16": Case(layers=32, key_heads=2, kind="bf16"),
    "dense, 288 columns": Case(hidden=288, inner=576),
    "dense, 576 columns, untied": Case(hidden=576, inner=1536, tied=False, key_heads=2),
    "dense, rows of 80": Case(inner=80, layers=2),
    "4 experts, one shared": Case(
        "qwen2moe", experts=4, parts=(*ATTENTION, *ROUTED, "ffn_gate_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp"), tied=False
    ),
    "8 experts": Case(experts=8, key_heads=2, parts=(*ATTENTION, *ROUTED)),
    "8 experts, 96 columns": Case(experts=8, layers=2, inner=96, parts=(*ATTENTION, *ROUTED)),
    "per-layer embeddings": Case("gemma4", keys=GEMMA4),
    "80 layers, grouped": Case(layers=80, key_heads=1, parts=("attn_v", "ffn_down"), file_types=MIXED),
    "80 layers, not grouped": Case(layers=80, parts=("attn_v", "ffn_down"), file_types=MIXED),
    "80 layers of another architecture": Case("qwen2", layers=80, parts=("attn_v", "ffn_down"), kind="f32", file_types=MIXED),
    "own mixture": Case("falcon", parts=("attn_qkv", "attn_output", "ffn_up", "ffn_down"), tied=False),
}


def tensors(name: str) -> dict[str, np.ndarray]:
    """The weights of a case, fp32."""
    case, rng = CASES[name], np.random.default_rng(sorted(CASES).index(name))
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (ROWS, case.hidden), "output_norm.weight": (case.hidden,)}
    if not case.tied:
        shapes["output.weight"] = (ROWS, case.hidden)
    if case.architecture == "gemma4":
        shapes |= {"per_layer_token_embd.weight": (ROWS, 512), "per_layer_model_proj.weight": (ROWS, case.hidden)}
        shapes |= {"rope_freqs.weight": (16,), "per_layer_proj_norm.weight": (32,)}
    for layer in range(case.layers):
        shapes[f"blk.{layer}.attn_norm.weight"] = (case.hidden,)
        for part in case.parts:
            if case.architecture == "gemma4" and part == "attn_v" and layer % 3 == 2:
                continue  # its values are its keys
            rows, columns = ROWS, case.inner if "ffn_down" in part else case.hidden
            stack = (case.experts,) if part.endswith("_exps") else ()
            rows = case.experts if part == "ffn_gate_inp" else 1 if part == "ffn_gate_inp_shexp" else rows
            shapes[f"blk.{layer}.{part}.weight"] = (*stack, rows, columns)
        if case.architecture == "gemma4":
            shapes |= {f"blk.{layer}.inp_gate.weight": (ROWS, case.hidden), f"blk.{layer}.proj.weight": (ROWS, 32)}
        if case.experts:
            shapes[f"blk.{layer}.ffn_down_exps.scale"] = (case.experts,)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def importance(name: str) -> dict[str, np.ndarray]:
    """An importance matrix for a case; none for embeddings and head, and none for one attention output."""
    rng = np.random.default_rng(1000 + sorted(CASES).index(name))
    found = {}
    for tensor, values in tensors(name).items():
        drawn = rng.uniform(0.01, 4.0, (*values.shape[:-2], values.shape[-1])).astype(np.float32)
        if values.ndim > 1 and tensor.startswith("blk.") and tensor != "blk.1.attn_output.weight":
            found[tensor] = drawn
    return found


def write_source(path: Path, name: str) -> None:
    """The 16-bit file of a case; norms and routers in fp32, as the converter writes them."""
    case = CASES[name]
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_block_count(case.layers)
    writer.add_file_type(1)
    writer.add_context_length(256)
    writer.add_embedding_length(case.hidden)
    writer.add_feed_forward_length(case.inner)
    writer.add_head_count(8)
    writer.add_head_count_kv([case.key_heads] * case.layers if case.architecture == "gemma4" else case.key_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    if case.experts:
        writer.add_expert_count(case.experts)
        writer.add_expert_used_count(2)
    for key, value in case.keys.items():
        writer.add_uint32(f"{case.architecture}.{key}", value)
    writer.add_token_list(["a", "é", "<|end|>"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 0.0])
    writer.add_chat_template("{{ messages }}")
    for tensor, values in tensors(name).items():
        if values.ndim == 1 or "ffn_gate_inp" in tensor or case.kind == "f32":
            writer.add_tensor(tensor, values)
        elif case.kind == "bf16":
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(tensor, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_imatrix_file(path: Path, name: str) -> None:
    """The importance matrix of a case as llama.cpp stores it: sums and counts, here of one token."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [DATASET])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor, values in importance(name).items():
        writer.add_tensor(f"{tensor}.in_sum2", values.reshape(-1, values.shape[-1]))
        writer.add_tensor(f"{tensor}.counts", np.ones((values.size // values.shape[-1], 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def told(path: Path) -> str:
    """What is kept of a file: its sha256, and the number of tensors of each type for whoever looks for a difference."""
    counts = Counter(tensor.tensor_type.name for tensor in GgufReader(path).tensors)
    return " ".join([hashlib.sha256(path.read_bytes()).hexdigest(), *(f"{kind}:{n}" for kind, n in sorted(counts.items()))])


def ask(binary: str, directory: Path, name: str) -> Iterator[tuple[str, str]]:
    """llama-quantize's answers for a case; "refused" where it writes nothing."""
    write_source(directory / "source.gguf", name)
    write_imatrix_file(directory / "imatrix.gguf", name)
    yield "source", told(directory / "source.gguf")
    for file_type in CASES[name].file_types:
        for weighed in (False, True):
            (directory / "made.gguf").unlink(missing_ok=True)
            options = ["--imatrix", "imatrix.gguf"] if weighed else []
            command = [binary, *options, "source.gguf", "made.gguf", file_type, "1"]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            answer = told(directory / "made.gguf") if done.returncode == 0 else "refused"
            if answer == "refused":
                print(name, file_type, (done.stderr or done.stdout).strip().splitlines()[-2:], file=sys.stderr)
            yield f"{file_type}, imatrix" if weighed else file_type, answer


if __name__ == "__main__":
    answers = {}
    for case_name in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            answers[case_name] = dict(ask(str(Path(sys.argv[1]).resolve()), Path(temporary), case_name))
    ANSWERS.write_text(json.dumps(answers, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
