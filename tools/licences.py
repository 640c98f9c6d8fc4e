"""Every package of ``constraints.txt`` with its licence, and those with a known weakness.

    make audit                # python tools/licences.py, then pip-audit

Licences are read from the metadata of what is installed: the expression of PEP 639, else the trove classifiers, else the free
text, in this order, because the last is often the whole licence. A package that says nothing, or a licence that asks something
of whoever links to the code, is listed apart and ends with 1: somebody has to look. Weaknesses come from PyPI's own records by
pip-audit; what it could not ask about is said to be unknown and is not counted as sound.
"""

import argparse
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# Words of licences that ask for something beyond a notice when code is linked to or changed.
ASKS = re.compile(r"\b(A?GPL|LGPL|GNU|MPL|Mozilla|EUPL|CDDL|EPL|SSPL|Proprietary|NVIDIA)", re.IGNORECASE)
KNOWN = {  # looked at, and why it is in order; a package that is not here and asks for something ends with 1
    "certifi": "MPL-2.0: data, unchanged",
    "hypothesis": "MPL-2.0: a tool of the tests, not handed on",
    "orjson": "MPL-2.0 in a file of Rust: unchanged",
    "pathspec": "MPL-2.0: a tool of the build, not handed on",
    "tqdm": "MPL-2.0 and MIT: unchanged, a dependency of the hub's client",
}


class Licence(NamedTuple):
    """A package of the constraints.

    Attributes:
        package: its name.
        version: that the constraints name.
        text: the licence as its metadata says it; empty where it says none.
        source: ``expression``, ``classifier``, ``text`` or ``not installed``.
    """

    package: str
    version: str
    text: str
    source: str


def licence_of(package: str, version: str) -> Licence:
    """The licence of an installed package."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return Licence(package, version, "", "not installed")
    return Licence(package, version, *_said(found))


def _said(found: Distribution) -> tuple[str, str]:
    metadata = found.metadata
    if expressions := metadata.get_all("License-Expression"):
        return expressions[0], "expression"
    marks = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if line.startswith("License :: ")]
    names = [mark for mark in marks if mark != "OSI Approved"]
    if names:
        return ", ".join(names), "classifier"
    text = " ".join((metadata.get_all("License") or [""])[0].split())
    return (text[:60], "text") if text else ("", "none")


def packages() -> list[tuple[str, str]]:
    """Names and versions of the constraints."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [(name, version) for name, _, version in (line.partition("==") for line in lines) if version]


def to_look_at(licences: list[Licence]) -> list[str]:
    """Packages of which nobody has said that their licence is in order, and why somebody has to."""
    lines = []
    for entry in licences:
        if entry.package.lower() in KNOWN or entry.source == "not installed":
            continue
        if not entry.text:
            lines.append(f"{entry.package} {entry.version}: its metadata names no licence")
        elif ASKS.search(entry.text):
            lines.append(f"{entry.package} {entry.version}: {entry.text}")
    return lines


def weaknesses() -> tuple[list[str], int]:
    """Known weaknesses of the constraints, a line each, and how many packages could not be asked about.

    Raises:
        SystemExit: pip-audit is not installed, or cannot ask anybody.
    """
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command += ["-r", str(ROOT / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if not done.stdout.startswith("{"):
        sys.exit(f"pip-audit: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'said nothing'}")
    answered = json.loads(done.stdout)["dependencies"]
    lines = [
        f"{entry['name']} {entry['version']}: {weakness['id']}, mended in {', '.join(weakness['fix_versions']) or 'no version'}"
        for entry in answered
        for weakness in entry.get("vulns", ())
    ]
    return lines, sum("skip_reason" in entry for entry in answered)


def main() -> None:
    """Print the table, what has to be looked at, and the weaknesses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--licences", action="store_true", help="licences alone; nobody is asked about weaknesses")
    given = parser.parse_args()
    licences = [licence_of(name, version) for name, version in packages()]
    for entry in licences:
        print(f"{entry.package:24} {entry.version:14} {entry.text or entry.source}")
    bad = to_look_at(licences)
    if not given.licences:
        weak, unknown = weaknesses()
        print(f"\n{len(licences) - unknown} of {len(licences)} packages asked about, {len(weak)} weaknesses; {unknown} unknown")
        bad += weak
        if unknown == len(licences):
            bad.append("nobody could be asked about weaknesses: is the package index reachable?")
    if bad:
        sys.exit("\nto look at:\n" + "\n".join(bad))


if __name__ == "__main__":
    main()
