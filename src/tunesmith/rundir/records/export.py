"""What an export wrote and how it is served: ``export/export.json``, ``merge.json``, ``commands.json``.

Paths stand as they are seen from the run directory, so that a run may be moved: commands are typed there.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tunesmith.rundir.records.base import FileRecord, Json, Record


@dataclass(frozen=True, kw_only=True)
class GgufFile(Record):
    """A GGUF file.

    Attributes:
        bytes: of the file.
        weights: numbers in its tensors.
        bits_per_weight: as measured, over all tensors.
        types: weights by llama.cpp's type of their tensor.
        training_kept: share of what the adapter added that is left after rounding, 1 for all of it and 0 where the file is the
            base again; None where it is not measured (16 bits, the blocks that were trained, DoRA, experts, a whole model).
    """

    bytes: int
    weights: int
    bits_per_weight: float
    types: dict[str, int]
    training_kept: float | None = None


@dataclass(frozen=True, kw_only=True)
class Export(FileRecord):
    """``export/export.json``.

    Attributes:
        files: the merged model's GGUF files by the type that the recipe names, in its order.
    """

    VERSION: ClassVar[int] = 1

    files: dict[str, GgufFile]


@dataclass(frozen=True, kw_only=True)
class RoundingCosts(FileRecord):
    """``export/NAME.rounding.json``: what rounding each tensor of the merged GGUF would cost the loss.

    Attributes:
        costs: by tensor and llama.cpp type; half of it is the expected KL, in nats summed over the tokens of the pass.
        weights: what the quantiser weighed the columns by: an importance matrix, or the scores of the same pass.
        lost: by tensor and type, the share that is kept of what the adapter added, of the types that take it back or enlarge
            it; no dynamic type chooses them.
    """

    VERSION: ClassVar[int] = 1

    costs: dict[str, dict[str, float]]
    weights: Literal["imatrix", "scores"]
    lost: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])


@dataclass(frozen=True, kw_only=True)
class ChosenType(Record):
    """The type of a tensor.

    Attributes:
        type: that it has.
        plain: that llama.cpp's rule would give it.
        bytes: of it, to the next tensor.
        cost: of its rounding.
    """

    type: str
    plain: str
    bytes: int
    cost: float


@dataclass(frozen=True, kw_only=True)
class TypeChoice(FileRecord):
    """``export/NAME-dynamic-TYPE.types.json``: the types that were chosen at the size of a plain one.

    Attributes:
        plain: llama.cpp's file type whose size is the budget.
        bytes, plain_bytes: of the tensors that were chosen for, so and in the plain type.
        cost, plain_cost: of their rounding, as in ``NAME.rounding.json``.
        tensors: by name; what is not there has the type of the rule.
    """

    VERSION: ClassVar[int] = 1

    plain: str
    bytes: int
    plain_bytes: int
    cost: float
    plain_cost: float
    tensors: dict[str, ChosenType]


@dataclass(frozen=True, kw_only=True)
class PlannedStep(Record):
    """One step of an export that is planned.

    Attributes:
        kind: what is done.
        target: file or directory that it writes, relative to ``export/``.
        bytes: of the target, as predicted.
        scratch_bytes: beside the target, gone when the step ends.
        until: the target of the last step that needs this one, after which it is removed; None where it stays.
    """

    kind: str
    target: str
    bytes: int
    scratch_bytes: int
    until: str | None


@dataclass(frozen=True, kw_only=True)
class ExportPlan(Record):
    """What ``export --dry-run`` says.

    Attributes:
        steps: in the order in which they are done.
        bytes: of all that stays.
        peak_bytes: the most at a time, what is temporary with it.
        free_bytes: on the disk of the run.
    """

    steps: tuple[PlannedStep, ...]
    bytes: int
    peak_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class MergeLosses(Record):
    """Mean dev loss in nats a supervised token; None where it was not measured.

    Attributes:
        trained: merged into the weights that training held, dequantised.
        original: merged into those of the checkpoint.
        adapter: unmerged, as training measured it.
    """

    trained: float | None
    original: float | None
    adapter: float | None


@dataclass(frozen=True, kw_only=True)
class Merge(FileRecord):
    """``export/merge.json``: what the adapter was merged into.

    Attributes:
        into: the weights as training held them, or those of the checkpoint.
        dtype: of most weights, as in torch (``bfloat16``).
        nbytes: of all weights.
        targets: weights that the adapter changed; a stack of experts is one.
        dequantized: weights whose values come from 4 bits; a stack of experts is one.
        dev_loss: of both ways to merge, where the base was held in 4 bits.
        summary: those in words.
        head: ``original`` where training had it in 8 bits: the merged model, and all files made from it, then compute another
            head than was trained with.
        new_tokens: of the recipe whose rows were trained and are written.
        tables: tensors that were trained whole and stand in the place of the base's.
    """

    VERSION: ClassVar[int] = 1

    into: Literal["trained", "original"]
    dtype: str
    nbytes: int
    targets: int
    dequantized: int
    dev_loss: MergeLosses | None = None
    summary: str | None = None
    head: Literal["as trained", "original"] = "as trained"
    new_tokens: int = 0
    tables: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NotWritten(Record):
    """A file of an export that there is none of.

    Attributes:
        reason: why it cannot be expressed.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class FinishedStep(Record):
    """A step of an export that a kill may not undo.

    Attributes:
        key: fingerprint of all that its target was made from.
        result: what it left to be remembered; its type is the step's.
    """

    key: str
    result: Json | None = None


@dataclass(frozen=True, kw_only=True)
class Staged(FileRecord):
    """``export/.next/done.json``: an export that is being made.

    Attributes:
        steps: the finished ones, by their targets.
    """

    VERSION: ClassVar[int] = 1

    steps: dict[str, FinishedStep] = field(default_factory=dict[str, FinishedStep])


@dataclass(frozen=True, kw_only=True)
class Command(Record):
    """How one engine serves one form.

    Attributes:
        engine: in words, for headings.
        of: the model card that shows it: the merged model's or the adapter's.
        argvs: what is typed in the run directory, one after another, each as the list of its arguments.
        note: what has to be known before.
    """

    engine: str
    of: Literal["merge", "adapter"]
    argvs: tuple[tuple[str, ...], ...]
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Commands(FileRecord):
    """``export/commands.json``.

    Attributes:
        commands: by engine and form (``vllm``, ``llama_server_adapter``).
        refused: why a file that a command would need was not written, by its name.
        differs: what llama.cpp computes otherwise than the model, a line each.
    """

    VERSION: ClassVar[int] = 1

    commands: dict[str, Command]
    refused: dict[str, str] = field(default_factory=dict[str, str])
    differs: tuple[str, ...] = ()
