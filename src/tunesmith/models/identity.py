"""Which base an adapter belongs to, and the refusal of another one.

An adapter is a correction of particular weights. On others of the same shapes it loads without a word and answers worse: a
newer revision under the same hub id, the pretrained model in the place of the instruct model. So a file ``tunesmith.json``
beside the adapter says the sha256 of the base's weights and of the chat template of the training rows, and loading on a base
with another hash is refused, until ``accept_base`` writes down that the other one is meant.

The hash is over names and contents of the files that hold the weights; the same weights cut into other files count as another
base. A hub id also has a commit, which goes into ``adapter_config.json`` as PEFT's ``revision``.

Cost: hashing reads the weights once, 0.5 to 1 s a GB. From 256 MB on the result is kept in the cache under names, sizes and
times of the files (``resolve.model_key``); weights that were exchanged with all of these kept are taken for the old ones.

Refused: a key of our own in ``adapter_config.json``, which PEFT 0.21 ignores with a warning that the file is from a newer
version; the template in the comparison, since a recipe may train with another template than the base's own.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import jiter

from tunesmith import hardware
from tunesmith.checkpoints.facts import model_key
from tunesmith.checkpoints.names import checkpoint_files
from tunesmith.errors import ModelError
from tunesmith.rundir import fingerprint, read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

FACTS = "tunesmith.json"
FACTS_BYTES = 2**20
SMALL = 2**28  # bytes of weights that are hashed again each time
_COMMIT = re.compile(r"[0-9a-f]{40}")


def base_identity(directory: Path, template: str | None = None) -> dict[str, str | None]:
    """What tells a base model from all others.

    Args:
        directory: of the base model (safetensors).
        template: chat template that the rows were rendered with; the base's own when None.

    Returns:
        ``sha256`` of its weights, ``template_sha256`` of the template's text (None where there is no template), and
        ``revision``, see ``commit_of``.

    Raises:
        ModelError: no safetensors there.
    """
    text = own_template(directory) if template is None else template
    return {
        "sha256": _weights_sha256(directory),
        "template_sha256": None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "revision": commit_of(directory),
    }


def commit_of(directory: Path) -> str | None:
    """The commit of a model that the hub's client downloaded, from the name of its directory; None for any other."""
    place = directory.absolute()
    return place.name if place.parent.name == "snapshots" and _COMMIT.fullmatch(place.name) else None


def write_identity(adapter: Path, identity: dict[str, str | None]) -> None:
    """Put a base's identity beside the adapter that was trained on it.

    Args:
        adapter: an existing adapter directory.
        identity: from ``base_identity``.
    """
    write_json(adapter / FACTS, {"base": identity})


def read_identity(adapter: Path) -> dict[str, Any] | None:
    """The identity of an adapter's base; None where nothing is said of it (an adapter that PEFT wrote).

    Raises:
        ModelError: the file is there and is not ours.
    """
    path = adapter / FACTS
    if not path.exists():
        return None
    try:
        facts = jiter.from_json(path.read_bytes()) if path.stat().st_size <= FACTS_BYTES else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}", "remove it to load the adapter without this check") from error
    base = facts.get("base") if isinstance(facts, dict) else None
    if not isinstance(base, dict) or not isinstance(base.get("sha256"), str):
        raise ModelError(f"{path}: says no base.sha256", "remove it to load the adapter without this check")
    return base


def accept_base(adapter: Path, identity: dict[str, str | None]) -> None:
    """Say that an adapter is meant for another base than the one it was trained on; that one stays written down.

    Args:
        adapter: an existing adapter directory.
        identity: of the base that is meant, from ``base_identity``.
    """
    known = read_identity(adapter)
    if known is None or known["sha256"] != identity["sha256"]:
        write_json(adapter / FACTS, {"base": identity, "trained_on": known})


def refuse_other_base(adapter: Path, base: Path) -> None:
    """Check that an adapter was trained on this base. An adapter that says nothing of its base passes, with a line said.

    Args:
        adapter: PEFT adapter directory.
        base: directory of the base model (safetensors).

    Raises:
        ModelError: it was trained on another one.
    """
    known = read_identity(adapter)
    if known is None:
        logger.warning(f"{adapter}: says nothing of the weights that it was trained on; taken on trust for {base}")
        return
    digest = _weights_sha256(base)
    if digest == known["sha256"]:
        return
    revision = f" (revision {known['revision']})" if known.get("revision") else ""
    raise ModelError(
        f"{adapter}: trained on weights with sha256 {known['sha256']}{revision}, those of {base} have {digest}",
        "name the model and the revision that it was trained on; if this base is meant, run: tunesmith accept-base RUN",
    )


def _weights_sha256(directory: Path) -> str:
    files = sorted(set(checkpoint_files(directory).values()))
    if sum(file.stat().st_size for file in files) < SMALL:
        return fingerprint([(file.name, sha256_file(file)) for file in files])
    known = hardware.cache_dir() / "identities" / f"{model_key(directory)}.json"
    if known.exists():
        return read_json(known)["sha256"]
    digest = fingerprint([(file.name, sha256_file(file)) for file in files])
    try:
        write_json(known, {"sha256": digest})
    except OSError as error:
        logger.warning(f"{known}: cannot be written ({error.strerror}); the base is hashed anew each time")
    return digest


def own_template(directory: Path) -> str | None:
    """The template as transformers finds it: its own file, or the tokenizer's configuration; None where there is none.

    Raises:
        ModelError: the template or the configuration cannot be read.
    """
    file, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    try:
        if file.exists():
            return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: cannot be read: {error}", "get the file again") from error
    if not settings.exists():
        return None
    try:
        template = jiter.from_json(settings.read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{settings}: cannot be read: {error}", "get the file again") from error
    return template if isinstance(template, str) else None
