"""What the loss says of the tensors of a GGUF, and which type each of them gets under a budget of bytes.

The pass over the rows scores modules of the merged model (``train/sensitivity.py``). A GGUF calls them otherwise, and llama.cpp
stores the rows of some matrices in another order (queries and keys of families whose rotary positions take neighbouring pairs).
The names are llama.cpp's own table. The order is found by comparing: every row of the 16-bit file is a row of the merged
checkpoint, to the bit, and a matrix of which that does not hold is not scored, and said. Refused: to restate llama.cpp's
reorderings, which change with its builds and fail in silence.

A table that is embedding and head at once is scored twice, and its two costs are added.

**The budget** is what the tensors that were scored take in the plain type, less the room of the keys that say so: so the file
is never larger than the plain one. What was not scored keeps the type that llama.cpp's rule gives it. The choice of
``bits/choose.py`` is best up to one tensor, which is next to nothing of a large model; of a small one the embedding alone may
be two thirds of the file. So it is asked once for every form of the two largest tensors, and the rule's own types are kept
where nothing costs less. Types that lose what training added (``gguf_write/kept.py``) are not asked, the rule's own neither; a
tensor of which all do keeps them.

Shape suffixes: O out_features, I in_features.
"""

import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from tunesmith.bits.choose import Option, choose
from tunesmith.bits.sensitivity import Sensitivity, load_sensitivity, save_sensitivity
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import ALIGNMENT, Chosen, Importance, aligned
from tunesmith.checkpoints.gguf_write.rounding import Rounding
from tunesmith.checkpoints.gguf_write.types import Source, Type, metadata_of, nbytes, plan_types, sources_of
from tunesmith.checkpoints.hf import read_config
from tunesmith.checkpoints.names import naming
from tunesmith.errors import ExportError
from tunesmith.export.base import read_stored
from tunesmith.export.gguf.lora import gguf_names
from tunesmith.recipe.run import plain_type
from tunesmith.rundir.records.export import ChosenType, TypeChoice

logger = logging.getLogger(__name__)

KEY = "tunesmith.dynamic_types"
ROOM = 1024  # bytes of that key and of those about the weights of the columns, at most
LEAST = 1e-3
TRIED = 2  # largest tensors of which every form is tried
HEAD, EMBEDDING = "output.weight", "token_embd.weight"


def write_scores(path: Path, scores: Mapping[str, Sensitivity], source: Path, merged: Path) -> None:
    """Write the scores of a model under the names of its GGUF's tensors, rows in the order of the file.

    Args:
        path: safetensors; a name is ``TENSOR/MODULE``.
        scores: by module.
        source: the 16-bit GGUF.
        merged: directory that it was converted from.

    Raises:
        ExportError: the installed ``gguf`` does not know the architecture, or no module that was scored is in the file.
        RunError: the place cannot be written.
    """
    placed, others = places_of(scores, source, merged)
    found = {
        f"{place.tensor}/{module}": scores[module]._replace(gradient_O=scores[module].gradient_O[place.order])
        for module, place in placed.items()
    }
    if not found:
        raise ExportError(f"{source}: none of its tensors was scored", "write the plain type: export.gguf without dynamic-")
    if others:
        logger.warning(f"export: {len(others)} modules are no matrices of the GGUF and keep the plain type, first {others[0]}")
    save_sensitivity(path, found)


class Place(NamedTuple):
    """Where the matrix of a module lies in a GGUF.

    Attributes:
        tensor: its name.
        order: which row of the module each row of the tensor is.
    """

    tensor: str
    order: NDArray[np.int64]


def places_of(modules: Iterable[str], source: Path, merged: Path) -> tuple[dict[str, Place], list[str]]:
    """Where each module lies in a GGUF, and the modules that are no matrix there.

    Args:
        modules: the model's names.
        source: the 16-bit GGUF.
        merged: directory that it was converted from.

    Raises:
        ExportError: the installed ``gguf`` does not know the architecture.
    """
    reader = GgufReader(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf_names(reader.value("general.architecture"), read_config(merged)[0].num_hidden_layers)
    stored, of = read_stored(merged), naming(merged)
    found: dict[str, Place] = {}
    others: list[str] = []
    for module in modules:
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        name = EMBEDDING if name == HEAD and HEAD not in tensors else name
        if name is None or name not in tensors or len(tensors[name].shape) != 2:
            others.append(module)
            continue
        weight = of.of_checkpoint(f"{module}.weight")
        weight = weight if weight in stored else of.of_checkpoint("model.embed_tokens.weight")
        with safe_open(stored[weight].file, framework="pt") as opened:
            order = row_order(tensors[name].data, opened.get_tensor(weight).half().numpy())
        if order is None:
            others.append(module)
        else:
            found[module] = Place(name, order)
    return found, others


def read_scores(path: Path) -> dict[str, list[Sensitivity]]:
    """The scores of a file that ``write_scores`` made, by tensor.

    Raises:
        RunError: not there, or damaged.
    """
    scores: dict[str, list[Sensitivity]] = {}
    for name, score in load_sensitivity(path).items():
        scores.setdefault(name.partition("/")[0], []).append(score)
    return scores


def column_weights(scores: Mapping[str, Sequence[Sensitivity]]) -> Importance:
    """The scores as an importance matrix, of the layers alone: a table is better rounded without (``llama-imatrix``'s README).

    A column that no row sent anything through counts for a thousandth of the mean, so that it is not rounded to nothing.
    """
    means = {name: parts[0].input_I.numpy() for name, parts in scores.items() if name.startswith("blk.")}
    return {name: np.maximum(mean_I, np.float32(LEAST * mean_I.mean())) for name, mean_I in means.items()}


def row_order(file_OI: NDArray[Any], model_OI: NDArray[Any]) -> NDArray[np.int64] | None:
    """Which row of the model each row of the file is; None where the rows are not the same.

    Args:
        file_OI: fp16.
        model_OI: fp16.
    """
    if file_OI.shape != model_OI.shape or file_OI.dtype != np.float16:
        return None
    if np.array_equal(file_OI, model_OI):
        return np.arange(len(file_OI))
    rows = [
        np.ascontiguousarray(each).view(np.dtype((np.void, each.itemsize * each.shape[1])))[:, 0]
        for each in (file_OI, model_OI)
    ]
    of_file, of_model = (np.argsort(each, kind="stable") for each in rows)
    if not np.array_equal(rows[0][of_file], rows[1][of_model]):
        return None
    order = np.empty(len(file_OI), np.int64)
    order[of_file] = of_model
    return order


def choose_types(source: Path, rounding: Rounding, file_type: str, has_imatrix: bool) -> TypeChoice:
    """The types of least cost in no more bytes than the plain type takes, none of them one that loses what training added.

    Args:
        source: the 16-bit GGUF.
        rounding: what each type does to its tensors.
        file_type: such as ``dynamic-Q4_K_M``.

    Raises:
        ExportError: a tensor that the plain type does not take.
    """
    reader, plain = aligned(source), plain_type(file_type)
    sources = {tensor.name: tensor for tensor in sources_of(reader)}
    rule = plan_types(sources.values(), plain, metadata_of(reader), has_imatrix)
    options = {
        name: [Option(kind, _padded(sources[name], Type[kind]), cost) for kind, cost in of.items()]
        for name, of in rounding.costs.items()
        if rule[name].name in of
    }
    before = {name: next(one for one in of if one.form == rule[name].name) for name, of in options.items()}
    allowed = {name: [one for one in of if one.form not in rounding.lost.get(name, {})] for name, of in options.items()}
    budget = sum(option.bytes for option in before.values()) - ROOM
    after = _cheapest({name: of or options[name] for name, of in allowed.items()}, budget)
    if after is None or (_cost(before) <= _cost(after) and all(one in allowed[name] for name, one in before.items())):
        after = before
    return TypeChoice(
        plain=plain,
        bytes=sum(option.bytes for option in after.values()),
        plain_bytes=sum(option.bytes for option in before.values()),
        cost=_cost(after),
        plain_cost=_cost(before),
        tensors={
            name: ChosenType(type=option.form, plain=rule[name].name, bytes=option.bytes, cost=option.cost)
            for name, option in after.items()
        },
    )


def _cheapest(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option] | None:
    """The best choice that is found, with every form of the largest tensors; None where none fits."""
    found: dict[str, Option] | None = None
    largest = sorted(options, key=lambda name: (-max(option.bytes for option in options[name]), name))[:TRIED]
    for forms in itertools.product(*(options[name] for name in largest)):
        fixed = dict(zip(largest, forms, strict=True))
        rest = {name: of for name, of in options.items() if name not in fixed}
        left = budget - sum(option.bytes for option in forms)
        if left < sum(min(option.bytes for option in of) for of in rest.values()):
            continue
        tried = {**fixed, **choose(rest, left)}
        if found is None or _cost(tried) < _cost(found):
            found = {name: tried[name] for name in options}
    return found


def _cost(choice: Mapping[str, Option]) -> float:
    return math.fsum(option.cost for option in choice.values())


def chosen_types(choice: TypeChoice) -> Chosen:
    """What the quantiser is told; where nothing is otherwise, the file is the plain one to the byte."""
    others = sum(tensor.type != tensor.plain for tensor in choice.tensors.values())
    text = f"{others} of {len(choice.tensors)} tensors otherwise than {choice.plain}, chosen by what the loss says"
    types = {name: Type[tensor.type] for name, tensor in choice.tensors.items()}
    return Chosen(types, {KEY: text} if others else {})


def _padded(tensor: Source, kind: Type) -> int:
    """Bytes in the file up to the next tensor."""
    size = nbytes([tensor], {tensor.name: kind})
    return size + -size % ALIGNMENT
