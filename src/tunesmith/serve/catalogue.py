"""What of a run can be served, and whether it may be: a run directory becomes an ``Entry``.

**The form.** Where the run exported its adapter as a GGUF (``export.lora_gguf``), that on the base's GGUF: all runs on the same
base then share its weights and a process. Else the file that the recipe deploys. A GGUF that was brought is served as it is.

**Only what may be deployed.** The verdict says that the model is worth it, parity says that the form is the model, and the
files are those that the verdict names. What fails is an error with all reasons; ``force`` turns them into warnings, which stay
with the model for as long as it is served. Where parity shows the merged file and not the adapter, the merged file is served,
and that is said.

**The same base.** Each run exports a base file of its own, with its template inside. Templates are not used here (the renderer
is the training's), so two files are the same base when every key that an answer follows from and every weight are the same.

Names are those of the recipes; ``NAME=RUN`` gives another.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ExportError, ModelError, RunError
from tunesmith.evaluate.gate import PASSING
from tunesmith.export.forms.vllm_adapter import TARGET, max_lora_rank
from tunesmith.export.names import LORA, base_file, base_name, gguf_name, lora_name
from tunesmith.models.adapter import CONFIG, WEIGHTS, read_adapter_config
from tunesmith.pipeline.export import context_of
from tunesmith.pipeline.tuned_model import TunedModel, tuned_model
from tunesmith.recipe import Recipe
from tunesmith.recipe.tuned import TUNED_OF
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.hashes import content_hash, file_state
from tunesmith.rundir.records.brought import Brought
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.export import Commands
from tunesmith.rundir.records.parity import FormParity, Parity
from tunesmith.serve.asking import Served
from tunesmith.serve.entry import Entry

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
NO_ANSWER = ("tokenizer.chat_template", "general.")  # keys that no answer follows from, where the prompt is token ids
VERSION = 16  # letters of a hash that name a version


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user says of all runs.

    Attributes:
        base: GGUF file of the base, in the place of those that the runs exported.
        base_name: name of the base as a model; the recipe's model when not given.
        context: tokens of a prompt and its answer; as the export reserves when not given.
        force: whether to serve what may not be deployed.
        engine: what it is for.
    """

    base: Path | None = None
    base_name: str | None = None
    context: int | None = None
    force: bool = False
    engine: Literal["llama.cpp", "vllm"] = "llama.cpp"


def named(text: str) -> tuple[str | None, Path]:
    """``NAME=RUN`` or ``RUN`` as name and run directory."""
    name, equals, run = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    return name, Path(run)


@dataclass(frozen=True)
class _Files:
    """What would be loaded.

    Attributes:
        form: as parity calls it.
        words: the form for people.
    """

    form: str
    words: str
    model: Path
    adapter: Path | None = None
    rank: int = 0


@dataclass
class Catalogue:
    """Finds what to serve; knows the bases that it has seen, so that runs on the same one share it."""

    choices: Choices = Choices()
    _bases: dict[str, Path] = field(default_factory=dict)  # by the hash of the first file with these weights

    def find(self, path: Path, name: str | None = None, force: bool = False) -> Entry:
        """What of a run is served.

        Args:
            path: run directory.
            name: in the place of the recipe's.
            force: whether to serve what may not be deployed; also if the choices say so.

        Raises:
            RunError: no run, nothing exported, a name that cannot be one, or nothing that may be deployed, with the reasons.
            ModelError: the base's tokenizer cannot be read.
        """
        run = RunDir.open(path)
        recipe = run.recipe()
        model = _served_here(run, recipe)
        name = _checked(name or str(recipe.name))
        is_forced = force or self.choices.force
        if self.choices.engine == "vllm":
            files, warnings = self._directory(run, recipe, model, is_forced)
            weights = fingerprint(recipe.model, recipe.revision)
            digest = fingerprint(weights, *(content_hash(files.model / file) for file in (WEIGHTS, CONFIG)))
        else:
            files, warnings = self._choose(run, recipe, model, is_forced)
            state = file_state(files.model)
            weights = state.sha256 if files.adapter is None else self._same_base(files.model, state.sha256)
            digest = weights if files.adapter is None else fingerprint(weights, content_hash(files.adapter))
        served = Served(
            name=name,
            created=int((files.adapter or files.model).stat().st_mtime),
            parent=None,
            version=digest[:VERSION],
            context=self.choices.context or context_of(run, recipe)[0],
            renderer=model.here.renderer,
            system=recipe.task.short_prompt,
            max_new_tokens=Rendered.read(run.rendered_file).max_new_tokens,
            form=files.words,
            verdict=_verdict(run).decision if run.verdict_file.exists() else None,
            warnings=tuple(warnings),
            run=path.resolve(),
        )
        base = None
        if files.adapter is not None or files.rank:
            base = replace(self._base(recipe, served, weights), created=int(files.model.stat().st_mtime))
            served = replace(served, parent=base.name)
        return Entry(
            served=served,
            model=files.model,
            adapter=files.adapter,
            weights=weights,
            base=base,
            base_model=recipe.model,
            rank=files.rank,
        )

    def _base(self, recipe: Recipe, served: Served, weights: str) -> Served:
        """The base below an adapter as a model of its own; a request brings its own system turn."""
        return replace(
            served,
            name=_checked(self.choices.base_name or _base_model_name(recipe)),
            version=weights[:VERSION],
            system=None,
            form="base GGUF",
            verdict=None,
            warnings=(),
            run=None,
        )

    def _directory(self, run: RunDir, recipe: Recipe, model: TunedModel, force: bool) -> tuple[_Files, list[str]]:
        """The adapter as vLLM loads it.

        Raises:
            RunError: there is none, or it may not be deployed.
            ExportError: vLLM does not apply it.
        """
        own = run.export / TARGET
        directory = own if own.is_dir() else model.adapter
        if directory is None or not (directory / WEIGHTS).is_file():
            raise RunError(f"{run.path}: has no adapter that vLLM could load", "serve it with llama.cpp, or its merged model")
        config = read_adapter_config(directory)
        if config.get("use_dora") or recipe.chat.new_tokens:
            what = "DoRA" if config.get("use_dora") else "rows of new tokens beside a base (chat.new_tokens)"
            raise ExportError(f"{directory}: vLLM does not apply {what}", "serve the merged model")
        files = _Files("adapter", "adapter in vLLM", directory, rank=max_lora_rank(int(config["r"])))
        reasons = _verdict_against(run)
        if run.verdict_file.exists() and content_hash(directory / WEIGHTS) not in _verdict(run).files.values():
            reasons.append(f"{_within(run, directory)} is not the adapter that the verdict speaks of")
        if reasons and not force:
            raise _refusal(run, reasons)
        return files, [f"forced: {reason}" for reason in reasons]

    def _choose(self, run: RunDir, recipe: Recipe, model: TunedModel, force: bool) -> tuple[_Files, list[str]]:
        """The form that is served, and what there is to say of it.

        Raises:
            RunError: nothing is exported, or none of it may be deployed.
        """
        forms = self._forms(run, recipe, model)
        missing = [file for form in forms for file in (form.model, form.adapter) if file is not None and not file.is_file()]
        if not forms or missing:
            what = f"{missing[0]} is not there" if missing else "nothing is exported that llama.cpp serves"
            raise RunError(f"{run.path}: {what}", f"run: tunesmith run {run.path} --until parity")
        shown = {form.form: _parity_against(run, form) for form in forms}
        first = forms[0]
        if not shown[first.form]:  # another form is for what parity says of this one alone
            forms = forms[:1]
        rest = {form.form: [*_verdict_against(run), *self._files_against(run, recipe, form)] for form in forms}
        reasons = {name: [*rest[name], *shown[name]] for name in rest}
        notes = [f"llama.cpp computes otherwise: {line}" for line in _differs(run)]
        may = [form for form in forms if not reasons[form.form]]
        if force and reasons[first.form]:
            return first, [f"forced: {reason}" for reason in reasons[first.form]] + notes
        if not may:
            raise _refusal(run, reasons[first.form])
        if may[0] is not first:
            notes.insert(0, f"{may[0].words} is served and not {first.words}: {'; '.join(reasons[first.form])}")
        return may[0], notes

    def _forms(self, run: RunDir, recipe: Recipe, model: TunedModel) -> list[_Files]:
        """The forms of a run that llama.cpp serves, the one to take first."""
        if model.gguf is not None:
            return [_Files(model.gguf.name, "GGUF as it was brought", model.gguf)]
        run_name, kind = str(recipe.name), recipe.export.gguf[-1]
        forms = [_Files(kind, f"merged GGUF, {kind}", run.export / gguf_name(run_name, kind))]
        if recipe.export.lora_gguf:
            base = self.choices.base or run.export / base_file(recipe)
            forms.insert(0, _Files(LORA, "adapter GGUF on the base GGUF", base, run.export / lora_name(run_name)))
        return forms[:1] if self.choices.base is not None else forms

    def _files_against(self, run: RunDir, recipe: Recipe, files: _Files) -> list[str]:
        """Files of a form that the verdict does not speak of."""
        if not run.verdict_file.exists():
            return []
        verdict, loaded = _verdict(run), [file for file in (files.model, files.adapter) if file is not None]
        if not verdict.files and not verdict.sources:
            return ["the verdict names no files, so that these are the ones it measured is not known"]
        other = [file for file in loaded if not self._is_named(run, recipe, verdict, file)]
        return [f"{_within(run, file)} is not the file that the verdict speaks of" for file in other]

    def _is_named(self, run: RunDir, recipe: Recipe, verdict: Verdict, file: Path) -> bool:
        """Whether the verdict, or what the run wrote down of what it was given, speaks of a file."""
        digest = content_hash(file)
        known = {*verdict.files.values(), *verdict.sources.values()}
        if recipe.tuned:  # a GGUF lies where it came from
            name = (verdict.chosen or "").removeprefix(TUNED_OF) if recipe.chooses else recipe.tuned[0].label
            own = [model for model in Brought.read(run.brought_file).models if (model.kind, model.name) == ("gguf", name)]
            known |= {digest for model in own for digest in model.files.values()}
        if digest in known:
            return True
        own = run.export / base_name(str(recipe.name), recipe.base_type)  # another file with the same weights
        is_own = own.is_file() and content_hash(own) in known
        return file == self.choices.base and is_own and _same_weights(own, file)

    def _same_base(self, file: Path, digest: str) -> str:
        """The hash of the first file with these weights."""
        if digest in self._bases:
            return digest
        for known, other in self._bases.items():
            if other.is_file() and content_hash(other) == known and _same_weights(other, file):
                return known
        self._bases[digest] = file
        return digest


def _served_here(run: RunDir, recipe: Recipe) -> TunedModel:
    """The tuned model of a run.

    Raises:
        RunError: it is behind an endpoint, or there are several and none is chosen.
    """
    if recipe.tuned_kind == "endpoint":
        raise RunError(
            f"{run.path}: the tuned model is behind an endpoint, not here to serve",
            "gate one with --adapter, --merged or --gguf, and serve that run",
        )
    return tuned_model(run, recipe)


def _within(run: RunDir, file: Path) -> Path:
    """A file of a run as its reader names it: reasons stay with the model, and clients are told no paths of this machine."""
    return file.relative_to(run.path) if file.is_relative_to(run.path) else Path(file.name)


def _refusal(run: RunDir, reasons: list[str]) -> RunError:
    return RunError(
        f"{run.path}: not to be deployed: {'; '.join(reasons)}",
        f"see {run.report_file}; --force serves it all the same, and says so",
    )


def _checked(name: str) -> str:
    """A name that a request can carry.

    Raises:
        RunError: it cannot be one.
    """
    if not NAME.fullmatch(name):
        raise RunError(f"{name!r} cannot be a model's name", "letters, digits and . _ : / - alone; give one: NAME=RUN")
    return name


def _base_model_name(recipe: Recipe) -> str:
    """What the recipe's model is called, without its owner or folder."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", Path(recipe.model).name.removesuffix(".gguf")).lstrip("._:-") or "base"


def _verdict(run: RunDir) -> Verdict:
    return Verdict.read(run.verdict_file)


def _verdict_against(run: RunDir) -> list[str]:
    """What of the verdict speaks against deploying."""
    if not run.verdict_file.exists():
        return ["there is no verdict"]
    verdict = _verdict(run)
    reasons = [] if verdict.decision in PASSING else [f"the verdict is: {verdict.decision}"]
    choice = run.choice_file
    if choice.is_file() and content_hash(choice) != verdict.files.get(choice.relative_to(run.path).as_posix()):
        reasons.append("which of the tuned models is deployed was chosen again since the verdict")
    return reasons


def _parity_against(run: RunDir, files: _Files) -> list[str]:
    """What of parity speaks against a form."""
    file = run.export / "parity.json"
    parity = Parity.read(file) if file.is_file() else None
    entry = None if parity is None else next((form for form in parity.forms if form.form == files.form), None)
    if parity is None or entry is None:
        return [f"parity has not looked at the form {files.form}"]
    verdict = _verdict(run) if run.verdict_file.exists() else None
    if entry.deployable or _was_measured(verdict, parity, entry):
        return []
    return [f"parity calls the form {files.form} {entry.state} ({entry.reason})"]


def _was_measured(verdict: Verdict | None, parity: Parity, entry: FormParity) -> bool:
    """Whether the sealed test part was asked in this very form, and the verdict on it passes."""
    asked = verdict is not None and verdict.candidate == "deployed" and verdict.decision in PASSING
    return asked and entry.state == "unknown" and entry.form == parity.deployed


def _differs(run: RunDir) -> Iterable[str]:
    file = run.export / "commands.json"
    return Commands.read(file).differs if file.is_file() else ()


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two GGUF files are the same model to whoever gives it token ids."""
    try:
        ours, theirs = GgufReader(one), GgufReader(other)
    except ModelError:
        return False
    if _keys(ours) != _keys(theirs) or len(ours.tensors) != len(theirs.tensors):
        return False
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        if (a.name, a.tensor_type, a.shape) != (b.name, b.tensor_type, b.shape) or not np.array_equal(a.data, b.data):
            return False
    return True


def _keys(reader: GgufReader) -> dict[str, bytes]:
    kept = ("general.architecture", *(key for key in reader.fields if not key.startswith(NO_ANSWER)))
    return {key: bytes(reader.fields[key].raw) for key in kept}
