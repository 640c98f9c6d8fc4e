"""One GGUF of a type that the export did not write, in a directory that is removed again.

The 16-bit file that a type is quantised from is the export's where it kept one, else it is converted once and stays for the
types that follow.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from tunesmith.checkpoints.gguf_write.convert import convert
from tunesmith.checkpoints.gguf_write.one_type import write_one_type
from tunesmith.checkpoints.gguf_write.quantize import Importance, quantize
from tunesmith.errors import ExportError
from tunesmith.export.forms.dynamic import Priced
from tunesmith.export.gguf.scores import choose_types, chosen_types
from tunesmith.export.sizes import FULL
from tunesmith.recipe.run import plain_type

HALF = "half.gguf"


def write_type(
    merged: Path,
    full: Path,
    kind: str,
    scratch: Path,
    importance: Importance | None,
    price: Callable[[Path], Priced],
) -> Path:
    """Write a type into ``scratch``.

    Args:
        merged: directory of the merged model.
        full: where the export's F16 file lies, if it does.
        importance: of the columns, by tensor; None for none.
        price: what a dynamic type of the 16-bit file is chosen by; not called for others.

    Raises:
        ExportError: too little room, or a type that cannot be written.
    """
    target = scratch / f"{kind}.gguf"
    half = full if full.exists() else scratch / HALF
    if kind in FULL or not half.exists():
        refuse_full_disk(merged, scratch)
    if (plain := plain_type(kind)) == kind:
        write_one_type(merged, target, kind, half, importance)
        return target
    if not half.exists():
        convert(merged, half, "F16")
    rounding, weights = price(half)
    quantize(half, target, plain, weights, chosen=chosen_types(choose_types(half, rounding, kind, importance is not None)))
    return target


def refuse_full_disk(merged: Path, scratch: Path) -> None:
    """The 16-bit file and one other are there at a time: no more than twice the merged weights.

    Raises:
        ExportError: there is less room.
    """
    needed = 2 * sum(file.stat().st_size for file in merged.glob("*.safetensors"))
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise ExportError(
            f"{scratch.parent}: a sweep takes up to {needed:,} bytes at a time, {free:,} are free",
            "make room, or name fewer types",
        )
