"""The GGUF of a base that an adapter is trained on and deployed beside, or whose grids are trained onto; made once and cached.

A 16-bit model is converted and quantised as an export would do it, and the file is read back as a model directory: from then on
the base *is* the file. What training, merging, measuring and serving see are the values of its blocks, and the tokenizer is the
original's.

Room: the 16-bit file beside the quantised one while it is made, and the values as fp32 safetensors, four bytes a weight, that
everything which wants dense numbers reads. A file whose grids alone are wanted has no such values: the base stays dense.
"""

import logging
import shutil
from pathlib import Path

from tunesmith import hardware
from tunesmith.checkpoints.content import READ
from tunesmith.checkpoints.facts import model_key
from tunesmith.checkpoints.gguf import convert_gguf, file_type_of
from tunesmith.checkpoints.gguf_blocks import refuse_unknown_blocks
from tunesmith.checkpoints.gguf_write.imatrix import read_imatrix
from tunesmith.checkpoints.gguf_write.one_type import write_one_type
from tunesmith.checkpoints.gguf_write.own_grid import keep_own_grids
from tunesmith.checkpoints.gguf_write.quantize import ImatrixOrigin
from tunesmith.errors import ExportError, ModelError
from tunesmith.rundir import atomic_directory, read_json, write_json
from tunesmith.rundir.hashes import content_hash

logger = logging.getLogger(__name__)

FILE = "base.gguf"
OWN = "own-grids.json"  # how many blocks have the grid that their weights lay on
WEIGHTS = (".safetensors", ".safetensors.index.json")


def base_gguf(directory: Path, kind: str) -> Path:
    """The file of a base in a llama.cpp type, beside the directory that it is read back as (``model_of``).

    Args:
        directory: of a 16-bit model.
        kind: such as ``Q4_K_M``.

    Raises:
        ModelError: llama.cpp does not know the model, or too little room.
    """
    target = hardware.cache_dir() / "bases" / f"{model_key(directory)[:16]}-{kind}"
    if not (target / FILE).exists() or not (model_of(target / FILE) / "config.json").exists():  # its links may lead nowhere
        logger.info(f"base: writing a GGUF in {kind} to train on (once; kept in {target})")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(target) as temporary:
            try:
                _write(directory, temporary, kind)
            except ExportError as error:
                raise ModelError(f"base: {kind}: {error.message}", error.hint) from error
            _lay_out(directory, convert_gguf(temporary / FILE, None), temporary / "model")
    return target / FILE


def grid_gguf(directory: Path, kind: str, importance: Path | None = None) -> Path:
    """The file of a base whose scales and minima are kept while its codes are trained.

    Args:
        directory: of a 16-bit model.
        kind: such as ``Q4_K_M``.
        importance: an imatrix file, by which the scales are chosen; another one makes another file.

    Raises:
        ModelError: llama.cpp does not know the model, a matrix of another model, or too little room.
    """
    weighed = "" if importance is None else f"-{content_hash(importance)[:16]}"
    target = hardware.cache_dir() / "grids" / f"{model_key(directory)[:16]}-{kind}{weighed}"
    if not (target / OWN).exists():
        logger.info(f"train.qat: writing the GGUF in {kind} whose grid is trained onto (once; kept in {target})")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(target) as temporary:
            try:
                _write(directory, temporary, kind, importance)
            except ExportError as error:
                raise ModelError(f"train.qat: {kind}: {error.message}", error.hint) from error
    return target / FILE


def share_kept(file: Path) -> float:
    """The share of blocks that have the grid which their weights lay on already, in a file that was made here."""
    if not (file.parent / OWN).exists():
        return 0.0
    own = read_json(file.parent / OWN)
    return own["kept"] / max(1, own["blocks"])


def _write(directory: Path, target: Path, kind: str, importance: Path | None = None) -> None:
    """Write the quantised file into a directory, with the grids that its weights lay on already where there are some."""
    half, values, origin = target / "half.gguf", None, None
    if importance is not None:
        matrix = read_imatrix(importance)
        values, origin = matrix.values, ImatrixOrigin(importance.name, "", matrix.chunks)
    write_one_type(directory, target / FILE, kind, half, values, origin)
    found = keep_own_grids(half, target / FILE)
    write_json(target / OWN, {"kept": found.kept, "blocks": found.blocks})
    if found.kept:
        share = found.kept / found.blocks
        logger.info(f"base: {share:.2%} of {found.blocks:,} blocks of Q4_0 keep the grid that their weights lay on already")
    half.unlink()


def model_of(file: Path) -> Path:
    """The model directory of a file that ``base_gguf`` made."""
    return file.parent / "model"


def own_file(file: Path, kind: str) -> Path:
    """A model that is a GGUF file already, to be trained on as it lies.

    Args:
        kind: that the recipe names; ``gguf`` for whatever it is.

    Raises:
        ModelError: it is of another type, or holds blocks that are not trained on.
    """
    refuse_unknown_blocks(file)
    found = file_type_of(file)
    if kind not in ("gguf", found):
        raise ModelError(
            f"{file}: is {found}, and base names {kind}",
            "base: gguf trains on the file as it is; for another type name the 16-bit model",
        )
    return file


def _lay_out(original: Path, converted: Path, target: Path) -> None:
    """Weights and configuration of the file, everything else of the original."""
    target.mkdir()
    for file in converted.iterdir():
        if file.name.endswith(WEIGHTS) or file.name == "config.json":
            (target / file.name).symlink_to(file)
    for file in original.iterdir():
        if file.suffix in READ and not file.name.endswith(WEIGHTS) and not (target / file.name).exists():
            shutil.copy(file, target / file.name)
