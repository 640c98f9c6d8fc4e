"""The base model of a run, opened once: where it lies, how it writes conversations, in which precision it computes.

Every stage asks the same four questions of a recipe's model: its directory, its renderer, the storage of its weights, the dtype
of its products. Asked anew in each place they cost a hash of the file, 0.1 to 4.5 s for the second tokenizer and a timed probe;
worse, two places may get two answers (a template that writes today's date, a file that was exchanged). ``BaseModel`` answers
each question once, when it is first asked, and is handed around. Stages of one process open the same base one after another,
so a tokenizer that was read, and what a template was found to do with it, stay (``_renderer``).

Nothing is loaded until ``load``. What is loaded is a stock model on the best device, with an adapter on it where one is named;
an adapter's rank, scale and targets are those of its own ``adapter_config.json`` and never a recipe's.

Refused: opening by keyword in every stage (seven keys, three of which decide whether an old answer still holds); keeping loaded
weights, which the next stage would share its memory with.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tunesmith.bits.mixed import MixedBase
from tunesmith.bits.sensitivity import load_sensitivity
from tunesmith.chat.render import Conversation, Renderer
from tunesmith.chat.rendered import Rendered
from tunesmith.chat.template_choice import template_text
from tunesmith.checkpoints.facts import model_key
from tunesmith.checkpoints.gguf import file_type_of
from tunesmith.checkpoints.grow import Grown, grow
from tunesmith.checkpoints.positions import with_positions
from tunesmith.checkpoints.resolve import find_model
from tunesmith.errors import DataError, ModelError, RunError
from tunesmith.layers.experts import Adapted
from tunesmith.models.adapter import CONFIG, load_adapted, read_lora, save_adapter
from tunesmith.models.device import best_device
from tunesmith.models.grids import lay_grids
from tunesmith.models.identity import base_identity, commit_of, refuse_other_base, write_identity
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.new_tokens import add_new_rows
from tunesmith.models.placement import Placement
from tunesmith.models.precision import Dtype, precision
from tunesmith.models.swap import add_lora
from tunesmith.models.whole_tables import add_whole_tables, trains_both
from tunesmith.recipe import BLOCK_BASES, Lora, NewToken, Recipe, section_from
from tunesmith.recipe.tables import BOTH, ONE_TABLE
from tunesmith.rundir import atomic_directory, fingerprint
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.base_forms import BaseForms
from tunesmith.rundir.rows import Example

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # beside an adapter with new tokens
TOKENIZER_FILES = (".json", ".jinja", ".model")  # suffixes of what a tokenizer and its template are read from


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model that is not loaded yet.

    Attributes:
        model: hub id, directory or ``.gguf`` file.
        revision, sha256: what must be found there: the commit of a hub id, the hash of a file.
        positions, rope_theta: that it gets in the place of its own, as in the recipe.
        base, arithmetic: storage and dtype that are asked for, ``recipe.base`` and ``recipe.train.compute``.
        per_layer_embeddings, resident_layers: where the table that feeds every layer lies and how many of the first decoder
            layers stay on the device, as in the recipe.
        embedding_on, base_head: where the embedding lies and what the head is kept in, as in the recipe.
        template: Jinja text that takes the place of the tokenizer's own.
        enable_thinking: switches thinking in the template.
        moment: what a template that reads the clock writes for good; None: the day on which it is first used.
        new_tokens: that its vocabulary gets, as in the recipe.
        budget: of bytes for a base in NF4, as in the recipe; it is loaded once its forms are chosen.
        forms: what each module is kept in under the budget, ``data/base.json`` of a run, the sensitivities beside it.
        grid: llama.cpp type of the file whose grids adapters are trained on (``train.qat``); None for none.
        weighed: whether that file is quantised with an importance matrix.
        importance: where that matrix lies.
    """

    model: str
    revision: str | None = None
    sha256: str | None = None
    positions: int | None = None
    rope_theta: float | str = "auto"
    base: str = "auto"
    arithmetic: str = "auto"
    per_layer_embeddings: str = "auto"
    resident_layers: int | str = "all"
    embedding_on: str = "device"
    base_head: str = "auto"
    template: str | None = None
    enable_thinking: bool | None = None
    moment: datetime | None = None
    new_tokens: tuple[NewToken, ...] = ()
    grid: str | None = None
    weighed: bool = False
    importance: Path | None = None
    budget: str | None = None
    forms: Path | None = None

    @cached_property
    def source(self) -> Path:
        """The model's directory as it was found, converted or downloaded when need be.

        Raises:
            ModelError: nothing there, a damaged file, another hash, no way to the hub, or a file that cannot be trained on.
        """
        if self.grid is None and self.base in BLOCK_BASES and self.model.endswith(".gguf") and Path(self.model).exists():
            assert self.blocks is not None  # which is refused before it is converted, not after
        return find_model(self.model, self.revision, self.sha256)

    @cached_property
    def blocks(self) -> Path | None:
        """The GGUF whose blocks the base is kept in, or on whose grids its adapters are trained, made when need be; or None.

        Raises:
            ModelError: see ``source``; or the model is a file of another type, or llama.cpp does not know it.
        """
        if self.grid is None and self.base not in BLOCK_BASES:
            return None
        # the extra gguf, which no other base needs
        from tunesmith.checkpoints.gguf_write.base import base_gguf, grid_gguf, own_file

        if self.grid is not None:
            return self.own_grid or grid_gguf(self.directory, self.grid, self._measured())
        if self.model.endswith(".gguf"):
            return own_file(Path(self.model), self.base)
        return base_gguf(self.source, self.base)

    @cached_property
    def own_grid(self) -> Path | None:
        """The model itself, where it is a file of the type whose grids are asked for: nothing has to be quantised.

        Raises:
            ModelError: see ``blocks``; or an importance matrix is asked for, and there is no scale to choose with it.
        """
        if self.grid is None or not self.model.endswith(".gguf") or self.positions is not None:
            return None
        _ = self.source  # which holds the file to its hash
        if file_type_of(Path(self.model)) != self.grid:
            return None
        if self.weighed:
            raise ModelError(
                f"{self.model}: is {self.grid} already, and its own grid is kept: an importance matrix has nothing to choose",
                "export.imatrix: false",
            )
        return Path(self.model)

    @property
    def lies_on_grid(self) -> bool:
        """Whether the weights lie on the very grid that is trained onto, most of them at least.

        Raises:
            ModelError: see ``blocks``.
        """
        if self.grid is None or self.blocks is None:
            return False
        from tunesmith.checkpoints.gguf_write.base import share_kept

        return self.own_grid is not None or share_kept(self.blocks) > 0.5

    def _measured(self) -> Path | None:
        """The importance matrix of the base, where its grid is chosen with one."""
        if not self.weighed:
            return None
        if self.importance is None or not self.importance.exists():
            raise ModelError(
                f"{self.model}: its grid is chosen with an importance matrix that "
                + ("lies in a run" if self.importance is None else f"is not there: {self.importance}"),
                "tunesmith train RUN measures it; export.imatrix: false chooses the grid without",
            )
        return self.importance

    @cached_property
    def grown(self) -> Grown:
        """The model's directory with the positions and the new tokens of the recipe.

        Raises:
            ModelError: see ``source``; or a model that gets no new tokens, or whose positions cannot be changed.
        """
        if self.base in BLOCK_BASES and not self.model.endswith(".gguf"):
            from tunesmith.checkpoints.gguf_write.base import model_of

            assert self.blocks is not None
            return Grown(model_of(self.blocks), 0, (), ())
        directory = with_positions(self.source, self.positions, self.rope_theta)
        return grow(directory, self.new_tokens) if self.new_tokens else Grown(directory, 0, (), ())

    @cached_property
    def directory(self) -> Path:
        """The directory of the model that is trained, with its new tokens where the recipe names some.

        Raises:
            ModelError: see ``grown``.
        """
        return self.grown.directory

    @cached_property
    def renderer(self) -> Renderer:
        """The tokenizer with the template in use.

        Raises:
            ModelError: no tokenizer there, or a template that cannot be used.
        """
        return _renderer(self.directory, self.template, self.enable_thinking, self.moment)

    @cached_property
    def _precision(self) -> tuple[str, Dtype]:
        return precision(self.base, self.arithmetic, self.directory)

    @property
    def storage(self) -> str:
        """What the frozen weights are kept in: ``fp32``, ``bf16``, ``fp16``, ``nf4`` or the blocks of a GGUF, by their type."""
        return self._precision[0]

    @property
    def compute(self) -> Dtype:
        """Dtype of the matrix products."""
        return self._precision[1]

    @cached_property
    def mixed(self) -> MixedBase | None:
        """What each module is kept in; None without a budget.

        Raises:
            ModelError: there is a budget, and no choice yet.
            RunError: the choice cannot be read.
        """
        if self.budget is None:
            return None
        if self.forms is None or not self.forms.exists():
            raise ModelError(
                f"base_budget: {self.budget}: what each layer is kept in is chosen in a run, and was not yet",
                "tunesmith run RECIPE, or leave base_budget out",
            )
        chosen = BaseForms.read(self.forms)
        return MixedBase({each.module: each.form for each in chosen.modules}, load_sensitivity(sensitivity_file(self.forms)))

    @property
    def extra_bytes(self) -> int:
        """What the chosen forms take beyond NF4; 0 as long as nothing is chosen."""
        if self.budget is None or self.forms is None or not self.forms.exists():
            return 0
        chosen = BaseForms.read(self.forms)
        return chosen.bytes - chosen.nf4_bytes

    @cached_property
    def key(self) -> str:
        """Fingerprint of the model's files, without reading its weights."""
        return model_key(self.directory)

    @property
    def answering_key(self) -> str:
        """Fingerprint of the model and of how it is kept while it answers."""
        forms = None if self.forms is None else content_hash(self.forms)
        kept = tuple(each for each in (self.base_head, self.grid, forms) if each not in ("auto", None))
        return fingerprint(self.key, self.base, self.arithmetic, self.per_layer_embeddings, *kept)

    def render(self, rows: Iterable[Example]) -> list[Rendered]:
        """Token ids and supervision of rows: objects with ``messages``, and ``tools`` where there are some.

        Raises:
            DataError: a row that the template refuses or in which nothing is supervised, by its number from 1.
        """
        rendered: list[Rendered] = []
        conversations = [Conversation(row["messages"], row.get("tools"), row.get("kind", "chat")) for row in rows]
        for number, result in enumerate(self.renderer.render_batch(conversations), start=1):
            if isinstance(result, DataError):
                raise DataError(f"row {number}: {result.message}", result.hint) from result
            rendered.append(result)
        return rendered

    def load(self, adapter: Path | None = None, dropout: float | None = None, *, shard: bool = False) -> "LoadedModel":
        """The weights in memory, on the best device, with the adapter of a PEFT directory on them where one is named.

        Args:
            dropout: of the adapter, in the place of its own, where it is trained further.
            shard: share the layers out among the processes that were launched together, all of which load alike.

        Raises:
            ModelError: damaged or unsuitable weights, or an adapter that was trained on another base.
        """
        if adapter is not None:
            refuse_other_base(adapter, self.directory)
        placement = Placement(
            per_layer_embeddings=self.per_layer_embeddings,
            embedding_on=self.embedding_on,
            base_head=self.base_head,
            resident_layers=self.resident_layers,
            shard=shard,
        )
        gguf = self.blocks if self.base in BLOCK_BASES else None
        model = load_model(self.directory, self.compute, self.storage, best_device(), placement, gguf=gguf, mixed=self.mixed)
        if adapter is None:
            return LoadedModel(base=self, model=model)
        self.lay_grids(model)
        lora = read_lora(adapter)
        if dropout is not None:
            lora = lora.model_copy(update={"dropout": dropout})
        return LoadedModel(base=self, model=model, layers=load_adapted(model, adapter, dropout), lora=lora)

    def lay_grids(self, model: PreTrainedModel) -> None:
        """Put the grids of ``grid`` on a loaded model, where there are any.

        Raises:
            ModelError: see ``models.grids.lay_grids``.
        """
        if self.grid is not None:
            assert self.blocks is not None
            lay_grids(model, self.blocks)

    def add_lora(self, *, seed: int = 0, **settings: Any) -> "LoadedModel":
        """The weights in memory with a new adapter on them, which changes nothing yet.

        Args:
            seed: of its first weights.
            settings: keys of the recipe's section ``lora``: ``r``, ``alpha``, ``dropout``, ``target_modules`` ...

        Raises:
            RecipeError: an unknown key, or a value out of range.
            TrainingError: nothing to adapt.
        """
        return self.load().adapt(section_from(Lora, settings, "add_lora"), seed)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        base: what was opened.
        model: the stock model, whose adapted layers are swapped.
        layers: what carries the adapter, by full name; empty without one.
        lora: the adapter's rank, scale and targets; None without one.
    """

    base: BaseModel
    model: PreTrainedModel
    layers: dict[str, Adapted] = field(default_factory=dict)
    lora: Lora | None = None

    @property
    def renderer(self) -> Renderer:
        """Of the base."""
        return self.base.renderer

    def adapt(self, lora: Lora, seed: int = 0) -> "LoadedModel":
        """The same model with a new adapter on it, which changes nothing yet: its layers are swapped in place.

        Raises:
            TrainingError: nothing to adapt.
            ModelError: tables that are not trained whole, or to which no rows of new tokens are added.
        """
        assert not self.layers, "a model has one adapter"
        self.base.lay_grids(self.model)
        layers = add_lora(self.model, lora, seed)
        tables = add_whole_tables(self.model, lora.modules_to_save)
        if (grown := self.base.grown).texts and not tables:
            layers |= add_new_rows(self.model, grown.first, len(grown.texts))
        elif grown.texts and not trains_both(tables):
            raise ModelError(ONE_TABLE, f"lora.modules_to_save: [{', '.join(BOTH)}], or leave that key out")
        layers |= tables
        return replace(self, layers=layers, lora=lora)

    def render(self, rows: Iterable[Example]) -> list[Rendered]:
        """See ``BaseModel.render``."""
        return self.base.render(rows)

    def save_adapter(self, directory: Path | str) -> Path:
        """Write the adapter as a PEFT directory, with the identity of its base beside it; whole or not at all.

        With new tokens the tokenizer lies beside it too.

        Raises:
            RunError: there is no adapter, or the directory holds something else.
        """
        target = Path(directory)
        if self.lora is None:
            raise RunError(f"{target}: the model has no adapter to save", "call add_lora first")
        if target.exists() and any(target.iterdir()) and not (target / CONFIG).exists():
            raise RunError(f"{target}: holds files that are no adapter", "name a new directory, or empty this one")
        with atomic_directory(target) as temporary:
            save_adapter(temporary, self.layers, self.lora, self.base.model, commit_of(self.base.source))
            if self.base.grown.texts:
                for name in (name for name in TOKENIZER if (self.base.directory / name).exists()):
                    shutil.copy(self.base.directory / name, temporary / name)
            write_identity(temporary, base_identity(self.base.directory, self.renderer.template))
        return target


def open_base(
    model: Recipe | str | Path,
    template: str | None = None,
    *,
    base: str | None = None,
    compute: str | None = None,
    importance: Path | None = None,
) -> BaseModel:
    """The base model of a recipe, or one by its hub id, directory or ``.gguf`` file. Loads no weights.

    Args:
        template: Jinja text in the place of the recipe's or the model's own template, as a run directory keeps it: thinking is
            switched in it already.
        base: storage of the weights in the place of the recipe's, as ``recipe.base``.
        compute: dtype of the products in the place of the recipe's ``train.compute``.
        importance: matrix with which the grid is chosen that the recipe trains onto; read where it asks for one.

    Raises:
        ModelError: the recipe's template cannot be read, or ``model`` names none.
    """
    if not isinstance(model, Recipe | str | Path):
        raise ModelError(f"open_base: expected a model or a recipe, found {type(model).__name__}", "a path or a hub id")
    if not isinstance(model, Recipe):
        return BaseModel(model=_local_or_hub(model), base=base or "auto", arithmetic=compute or "auto", template=template)
    enable_thinking = None
    if template is None:
        enable_thinking = model.chat.enable_thinking
        template = None if model.chat.template is None else template_text(model.chat.template)
    return BaseModel(
        model=model.model,
        revision=model.revision,
        sha256=model.model_sha256,
        positions=model.max_position_embeddings,
        rope_theta=model.rope_theta,
        base=base or model.base,
        arithmetic=compute or model.train.compute,
        per_layer_embeddings=model.per_layer_embeddings,
        resident_layers=model.train.resident_layers,
        embedding_on=model.train.embedding_on,
        base_head=model.base_head,
        template=template,
        enable_thinking=enable_thinking,
        new_tokens=model.chat.new_tokens,
        grid=model.export.gguf[-1] if model.train.qat else None,
        weighed=model.grid_is_weighed,
        importance=importance,
        budget=model.base_budget,
    )


def sensitivity_file(forms: Path) -> Path:
    """What the modules were scored with, beside what was chosen."""
    return forms.with_name(f"{forms.stem}_sensitivity.safetensors")


def _local_or_hub(model: str | Path) -> str:
    """A file or directory as an absolute path; a hub id as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() or path.suffix == ".gguf" or isinstance(model, Path) else model


_RENDERERS: dict[tuple[object, ...], Renderer] = {}  # of this process, by all that makes one
MOST_RENDERERS = 8


def _renderer(directory: Path, template: str | None, enable_thinking: bool | None, moment: datetime | None) -> Renderer:
    """The renderer of a directory, once a process while its files stay what they are.

    It is known by what was asked for, and by the text that it settled on: what a run directory keeps is opened by the latter.
    A template that reads the clock is read anew on another day.
    """
    names = [file for file in sorted(directory.iterdir()) if file.suffix in TOKENIZER_FILES]
    files = (directory, *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in names))
    key = (files, template, enable_thinking, moment or date.today())
    if key not in _RENDERERS:
        if len(_RENDERERS) >= MOST_RENDERERS:
            _RENDERERS.clear()
        renderer = Renderer(load_tokenizer(directory), template, enable_thinking, moment)
        _RENDERERS[key] = _RENDERERS[(files, renderer.template, None, date.today())] = renderer
    return _RENDERERS[key]
