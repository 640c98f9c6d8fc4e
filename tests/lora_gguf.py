"""A drawn LoRA adapter as a GGUF file, for a GGUF of its base."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from tunesmith.checkpoints.gguf_reader import GgufReader


def write_lora(base: Path, target: Path, seed: int, *, layers: Sequence[str], rank: int, alpha: float, size: float) -> None:
    """Write one.

    Args:
        layers: names of the linear layers that it is on, in every block, as GGUF has them.
        size: standard deviation of its factors.
    """
    generator, reader = np.random.default_rng(seed), GgufReader(base)
    writer = gguf.GGUFWriter(target, str(reader.value("general.architecture")))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for tensor in reader.tensors:
        if tensor.name.endswith(tuple(f".{name}.weight" for name in layers)):
            outputs, inputs = tensor.shape
            writer.add_tensor(f"{tensor.name}.lora_a", generator.normal(0, size, (rank, inputs)).astype(np.float32))
            writer.add_tensor(f"{tensor.name}.lora_b", generator.normal(0, size, (outputs, rank)).astype(np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
