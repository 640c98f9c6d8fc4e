"""A target for atheris: ``python fuzz_prescan.py gguf|safetensors CORPUS [libFuzzer's options]``.

Any exception but ``ModelError``, a run of more than the options' seconds or megabytes, and a file that passes the scan and that
the library then cannot read, stop it with a report. ``tests/models/test_prescan.py`` runs it for half a minute each.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["tunesmith.checkpoints.prescan"]):
    import tunesmith.checkpoints.prescan  # noqa: F401
import prescan_files

HOLDS = {"gguf": prescan_files.gguf_holds, "safetensors": prescan_files.safetensors_holds}


def main() -> None:
    form = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"a.{form}"

        def once(raw: bytes) -> None:
            path.write_bytes(raw)
            HOLDS[form](path)

        atheris.Setup(sys.argv, once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
