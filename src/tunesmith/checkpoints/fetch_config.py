"""The ``config.json`` of a model on the hub, alone: a few kilobytes that say what a model of any size takes.

It is kept in our cache. In the hub's, a directory with that file alone would look like a model that has been fetched.
"""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from tunesmith import hardware
from tunesmith.errors import ModelError, first_line


def fetch_config(model: str, revision: str | None = None) -> Path:
    """The file, fetched where it is not there yet or is another one by now.

    Args:
        model: hub id.
        revision: commit or branch.

    Raises:
        ModelError: no such model, no such file in it, or no way to the hub.
    """
    place = hardware.cache_dir() / "configs" / model.replace("/", "--") / (revision or "main")
    try:
        return Path(hf_hub_download(model, "config.json", revision=revision, local_dir=place))
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{model} has not been fetched yet, and its config.json cannot be: {reason}",
            "check the spelling; or put its config.json into a directory of its own and give that; no weights are read",
        ) from error
