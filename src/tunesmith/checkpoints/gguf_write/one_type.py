"""A model directory as a GGUF of any type: converted to 16 bits, and from there quantised.

The 16-bit file is the larger part of the work and of the room, so whoever writes several types keeps it between them. An export
has it as a step of its own (``export/forms/``), which can be resumed and is counted; everyone else writes files here.
"""

from pathlib import Path

from tunesmith.checkpoints.gguf_write.convert import convert
from tunesmith.checkpoints.gguf_write.quantize import ImatrixOrigin, Importance, quantize


def write_one_type(
    model: Path,
    target: Path,
    file_type: str,
    half: Path,
    imatrix: Importance | None = None,
    origin: ImatrixOrigin | None = None,
) -> None:
    """Write a model directory in one type.

    Args:
        file_type: as of ``quantize``.
        half: the F16 file, converted where it does not lie there, and left there; not looked at for a 16-bit type.
        imatrix, origin: as of ``quantize``.

    Raises:
        ExportError: the converter failed, or a type that these tensors cannot have.
    """
    if file_type == "F16" or file_type == "BF16":
        convert(model, target, file_type)
        return
    if not half.exists():
        convert(model, half, "F16")
    quantize(half, target, file_type, imatrix, origin)
