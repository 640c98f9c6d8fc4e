"""The verb push: a form of a run to a repository of the Hugging Face hub, in one commit.

Nothing is sent that the verdict does not name, and nothing that is another file than it named: a push is planned, every file is
hashed, and only then is the hub asked. A form that parity has not passed is refused: a card with a score on a file that is
another model is worse than no card. One exception: the type that the sealed test part was asked in, where the verdict is
deploy, was measured itself. A verdict that is not deploy is said in words and on the card, and refuses nothing: a negative
result may be published.

What leaves the machine: weights, tokenizer, template and the card. No rows, no answers, no prompts but the short one that the
model was trained with. Paths of the machine do not leave it: a base that lies on it has its name alone, or the hub id
that the user gives.

One commit: the repository holds the old files or the new ones. The hub's client sends large files before it, and those that are
there already are not sent again, so the same command goes on after an interruption. The token is the client's own matter
(``HF_TOKEN``, ``hf auth login``); it is never read here.

Refused: pushing while a run goes on (a run that publishes by itself has taken somebody's word for it); a pull request on the
hub's side by default, which nobody would look for.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.errors import HTTPError as ClientError  # pyright: ignore[reportPrivateImportUsage] - httpx's, or httpx2's
from huggingface_hub.utils import validate_repo_id

from tunesmith.errors import ProvenanceError, PushError
from tunesmith.pipeline.provenance import read_verdict
from tunesmith.recipe import Recipe
from tunesmith.report.hub_card import HubFacts, hub_card
from tunesmith.rundir import RunDir, read_rows, sha256_file
from tunesmith.rundir.records.base import Json
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.export import Export
from tunesmith.rundir.records.parity import FormParity, Parity
from tunesmith.rundir.records.push import Push, PushFile, PushForm
from tunesmith.tracking.progress import progress

CARDS = {"adapter": "adapter/README.md", "merged": "export/merged/README.md", "gguf": "export/merged/README.md"}
MADE_BY = {"adapter": "train", "merged": "export", "gguf": "export"}
CONFIG = "adapter/adapter_config.json"
BASE_KEY = "base_model_name_or_path"
Sources = dict[str, str]  # name in the repository -> path below the run directory


def plan(
    run: RunDir,
    to: str,
    form: PushForm,
    *,
    private: bool = False,
    base: str | None = None,
    base_license: str | None = None,
    data_license: str | None = None,
    examples: int = 0,
) -> Push:
    """What a push would send; nothing is sent, and no token needed.

    Args:
        to: owner and name of the repository.
        base: hub id of the base, where the recipe names a path.
        base_license, data_license: where they are known, and no card of the base says so.
        examples: rows of dev to show on the card.

    Raises:
        PushError: no such place, a form that was not made, or that parity did not pass.
        ProvenanceError: a file is not the one that the verdict names.
        RunError: the run has no verdict.
    """
    _refuse_bad_name(to, "--to")
    if base is not None:
        _refuse_bad_name(base, "--base")
    recipe, verdict = run.recipe(), read_verdict(run)
    types, notes = _passed(run, verdict, form, to)
    sources, left_out = _sources(run, verdict, recipe, form, types)
    _refuse_altered(run, verdict, ["data/test.jsonl", *sources.values()])
    of_hub = None if Path(recipe.model).is_absolute() else recipe.model
    known_base = base or of_hub
    files: list[PushFile] = []
    for name, source in sources.items():
        rewritten = _named_base(run.path / source, known_base or Path(recipe.model).name) if source == CONFIG else None
        if rewritten is not None:
            notes.append(f"{name} names the base {known_base or Path(recipe.model).name}, in place of a path of this machine")
        files.append(_file(run, verdict, name, source, rewritten))
    rows = read_rows(run.data / "dev.jsonl")[:examples] if examples else []
    facts = HubFacts(
        name=str(recipe.name),
        to=to,
        form=form,
        types=types,
        base=known_base,
        base_name=Path(recipe.model).name,
        datasets=tuple(dict.fromkeys(_hub_rows(recipe))),
        data_sha256=tuple(sorted(digest for path, digest in verdict.sources.items() if path in _data_files(run))),
        base_license=base_license,
        data_license=data_license,
        verdict=verdict,
        verdict_sha256=sha256_file(run.verdict_file),
        files=tuple(files),
        has_modelfile="Modelfile" in sources,
        examples=tuple((row.question, row.reference) for row in rows),
    )
    text = hub_card(_exported_card(run, form), facts)
    if not verdict.deploy:
        notes.insert(0, f"the verdict is not deploy, it is: {verdict.decision}")
    notes += [f"{name} is left out: the verdict does not speak of it" for name in left_out]
    if known_base is None:
        notes.append(f"the base is known as {Path(recipe.model).name} alone; --base OWNER/NAME says where others find it")
    notes += _unstated(text)
    if examples:
        notes.append(f"the card shows {len(rows)} rows of the data")
    card = PushFile(name="README.md", source=None, bytes=len(text.encode()), sha256=_sha256(text), text=text)
    return Push(
        run=str(run.path),
        to=to,
        form=form,
        private=private,
        decision=verdict.decision,
        files=(card, *files),
        notes=tuple(notes),
    )


def publish(run: RunDir, planned: Push) -> Push:
    """Make the repository where there is none, and commit the files.

    Raises:
        PushError: no token, no right, no way to the hub, or a repository that is public where a private one was asked for.
    """
    if get_token() is None:
        raise PushError("the hub knows nobody here: there is no token", "hf auth login, or HF_TOKEN in the environment")
    api = HfApi(library_name="tunesmith")
    operations = [
        CommitOperationAdd(file.name, file.text.encode() if file.text is not None else str(run.path / (file.source or "")))
        for file in planned.files
    ]

    def send() -> str:
        try:
            known = api.repo_info(planned.to)
        except RepositoryNotFoundError:
            api.create_repo(planned.to, private=planned.private)
        else:
            if planned.private and not known.private:
                raise PushError(
                    f"{planned.to}: is public, and --private was asked for",
                    "make it private on the hub first, or choose another",
                )
        message = f"{planned.form} by tunesmith, verdict: {planned.decision}"
        return str(api.create_commit(planned.to, operations, commit_message=message).commit_url)

    return replace(planned, url=_asked(send, planned.to))


def _asked(send: Callable[[], str], to: str) -> str:
    again = "run the same command again: what has arrived is not sent twice"
    try:
        return send()
    except OfflineModeIsEnabled as error:
        raise PushError(f"{to}: the hub's client is switched off (HF_HUB_OFFLINE)", "unset it for this command") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        told = {
            401: "check the token: hf auth whoami",
            403: f"the token may not write to {to.partition('/')[0]}; ask for that right",
        }
        raise PushError(f"{to}: the hub answers {code}: {_first_line(error)}", told.get(code, again)) from error
    except (ClientError, OSError, RuntimeError, ValueError) as error:
        raise PushError(f"{to}: not published: {_first_line(error)}", again) from error


def _first_line(error: Exception) -> str:
    """An error without the query of an address, which may hold a signature."""
    text = re.sub(r"\?\S+", "", str(error))
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def _refuse_bad_name(name: str, option: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise PushError(f"{option} {name}: {error}", f"such as {option} my-team/my-model") from error
    if "/" not in name:
        raise PushError(f"{option} {name}: has no owner", f"such as {option} my-team/{name}")


def _passed(run: RunDir, verdict: Verdict, form: PushForm, to: str) -> tuple[tuple[str, ...], list[str]]:
    """GGUF types that may be published, and what there is to say of the form.

    Raises:
        PushError: parity has not passed it.
    """
    if form == "adapter":  # what every form is held against
        return (), []
    file = run.export / "parity.json"
    if not file.is_file():
        raise PushError(f"{run.path}: no form was held against what was trained", f"run: tunesmith parity {run.path}")
    _refuse_altered(run, verdict, ["export/parity.json"])
    parity = Parity.read(file)
    types = list(Export.read(run.export / "export.json").files)
    if not types:  # a GGUF that was chosen from several lies where it came from
        raise PushError(f"{run.path}: there is no form {form}", _other_form(run, run.recipe(), form))
    asked = ["merged"] if form == "merged" else types
    entries = [entry for entry in parity.forms if entry.form in asked]
    may = [entry for entry in entries if entry.deployable or _was_measured(verdict, parity, entry)]
    if not may:
        why = "; ".join(f"{entry.form} is {entry.state}: {entry.reason}" for entry in entries) or "it is in no parity"
        raise PushError(
            f"{run.path}: {form}: parity did not pass it: {why}",
            f"more dev rows or another type in export.gguf may; the adapter itself: tunesmith push {run.path} --to {to}",
        )
    notes = [f"{e.form} is left out: parity calls it {e.state} ({e.reason})" for e in entries if e not in may]
    notes += [
        f"{entry.form} was not shown by parity, and is published for its score on the sealed test part ({entry.reason})"
        for entry in may
        if not entry.deployable
    ]
    return tuple(kind for kind in types if any(entry.form == kind for entry in may)), notes


def _was_measured(verdict: Verdict, parity: Parity, entry: FormParity) -> bool:
    """Whether the sealed test part was asked in this very form, and the verdict on it is deploy."""
    return verdict.deploy and verdict.candidate == "deployed" and entry.state == "unknown" and entry.form == parity.deployed


def _sources(
    run: RunDir, verdict: Verdict, recipe: Recipe, form: PushForm, types: tuple[str, ...]
) -> tuple[Sources, list[str]]:
    """The files of a form by their name in the repository, and those that lie there and that the verdict does not name.

    Raises:
        PushError: the form was not made.
    """
    if form == "gguf":
        found = {f"{recipe.name}-{kind}.gguf": f"export/{recipe.name}-{kind}.gguf" for kind in types}
        if types and types[-1] == recipe.export.gguf[-1] and (run.export / "Modelfile").is_file():
            found["Modelfile"] = "export/Modelfile"
    else:
        folder = "adapter/" if form == "adapter" else "export/merged/"
        names = [name for name in run.files_below(folder) if name != CARDS[form]]
        found = {name.removeprefix(folder): name for name in names}
        if form == "adapter" and found:
            template = run.brought_template(recipe.tuned[0].label) if recipe.tuned else run.template_file
            found["chat_template.jinja"] = template.relative_to(run.path).as_posix()
    if not any(name in verdict.files for name in found.values()):
        raise PushError(f"{run.path}: there is no form {form}", _other_form(run, recipe, form))
    left_out = [name for name, source in found.items() if source not in verdict.files]
    return {name: source for name, source in found.items() if source in verdict.files}, left_out


def _other_form(run: RunDir, recipe: Recipe, form: PushForm) -> str:
    """What to do where a form was not made: a run whose tuned model was brought makes what its one candidate allows."""
    candidates = list(recipe.tuned)
    if not candidates:
        return f"run: tunesmith {MADE_BY[form]} {run.path}"
    if len(candidates) > 1:
        alone = f"gate one of them alone, and push that run: {', '.join(one.label for one in candidates)}"
        return f"push what was made of the chosen one: --form merged or gguf; or {alone}" if run.merged.is_dir() else alone
    kind = candidates[0].kind
    if (kind, form) in (("adapter", "merged"), ("adapter", "gguf"), ("merged", "gguf")):
        return f"run: tunesmith export {run.path}"
    other = {"adapter": "adapter", "merged": "gguf", "gguf": "", "endpoint": ""}[kind]
    return f"what was brought has another form: --form {other}" if other else "publish what was brought from where it lies"


def _refuse_altered(run: RunDir, verdict: Verdict, names: list[str]) -> None:
    """Refuse a push of files that are not those of the verdict.

    Raises:
        ProvenanceError: which.
    """
    with progress("hash", len(names)) as bar:
        for name in names:
            file = run.file(name)
            if not file.is_file() or sha256_file(file) != verdict.files.get(name):
                state = "is not the file that the verdict speaks of" if file.is_file() else "is gone"
                raise ProvenanceError(f"{run.path}: {name} {state}", f"look at all of them: tunesmith verify {run.path}")
            bar.advance()


def _file(run: RunDir, verdict: Verdict, name: str, source: str, rewritten: str | None) -> PushFile:
    if rewritten is not None:
        return PushFile(name=name, source=source, bytes=len(rewritten.encode()), sha256=_sha256(rewritten), text=rewritten)
    return PushFile(name=name, source=source, bytes=(run.path / source).stat().st_size, sha256=verdict.files[source])


def _named_base(config: Path, base: str) -> str | None:
    """The configuration of an adapter with another name of its base; None where it has that already."""
    settings = cast(Json, json.loads(config.read_text(encoding="utf-8")))
    if settings.get(BASE_KEY) == base:
        return None
    return json.dumps({**settings, BASE_KEY: base}, indent=2, ensure_ascii=False) + "\n"


def _exported_card(run: RunDir, form: PushForm) -> str:
    """The card that the export wrote, which the hub's begins with.

    Raises:
        PushError: it is not there.
    """
    file = run.path / CARDS[form]
    if not file.is_file():
        again = f"run: tunesmith run {run.path} --until export --force export"
        raise PushError(f"{run.path}: {CARDS[form]} is not there, and the card begins with it", again)
    return file.read_text(encoding="utf-8")


def _hub_rows(recipe: Recipe) -> list[str]:
    """Hub ids of the rows, without their splits."""
    paths = [rows.path for rows in recipe.data.paths]
    return [path.partition(":")[0] for path in paths if not Path(path).is_absolute()]


def _data_files(run: RunDir) -> set[str]:
    digests = run.manifest().data.get("sha256")
    return set(digests) if isinstance(digests, dict) else set()


def _unstated(card: str) -> list[str]:
    """What the card has to leave open."""
    notes: list[str] = []
    if "): not stated where it was read" in card:
        notes.append("the licence of the base is not known; --base-license says it")
    if "\n- Data: not stated\n" in card:
        notes.append("the licence of the data is not known; --data-license says it")
    return notes


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
