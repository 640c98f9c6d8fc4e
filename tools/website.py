"""The documentation as a site, from the same files, a folder a version.

    make site                 # python tools/website.py: site/0.1.0/ and, beside it, the list of versions

The pages are written to be read in the repository: they link to examples, to results and to files at the root. Nothing is
copied for the site and no page knows of it; as a hook of MkDocs this module gives each linked file outside of ``docs/`` a place
below ``source/`` and rewrites the link. Every link and anchor that leads nowhere is an error (``--strict``).

Versions lie beside each other, ``versions.json`` lists them in the form that the theme reads, and the first page leads to the
newest. Refused: the program mike (it commits sites to a branch of this repository); a nav that is kept by hand (a new page has
to be found by whoever adds one, and the folders are the sections already).
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTSIDE = "source/"  # where a file of the repository that is none of docs/ lies in the site
MOVED = {"README.md": "index.md", "docs/README.md": "documentation.md"}  # the product first, then the list of pages
SECTIONS = {"tutorial": "Start", "how-to": "How to", "explanation": "Why", "reference": "Look up"}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
EXTERNAL = ("http://", "https://", "mailto:")


def on_config(config: Any) -> Any:
    """A hook of MkDocs: the nav, from the folders."""
    nav: list[Any] = [{"tunesmith": ["index.md", "documentation.md"]}]
    for folder, title in SECTIONS.items():
        nav.append({title: [f"{folder}/{page.name}" for page in sorted((DOCS / folder).glob("*.md"))]})
    nav.append({"More": sorted(page.name for page in DOCS.glob("*.md") if page.name != "README.md")})
    config["nav"] = nav
    return config


def on_files(files: Any, config: Any) -> Any:
    """A hook of MkDocs: files of the repository that a page links to become files of the site."""
    from mkdocs.structure.files import File, InclusionLevel

    files.remove(files.get_file_from_path("README.md"))
    for place in (*MOVED, *sorted(outside())):
        file = File.generated(config, in_site(place), abs_src_path=str(ROOT / place))
        file.inclusion = InclusionLevel.INCLUDED if place in MOVED else InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def in_site(place: str) -> str:
    """Where a file of the repository lies in the site, as the source that MkDocs reads."""
    return MOVED.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else OUTSIDE + place)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A hook of MkDocs: links of a page, as they are in the site."""
    here, moved = page.file.src_uri, {inside: place for place, inside in MOVED.items()}
    place = moved.get(here) or (here.removeprefix(OUTSIDE) if here.startswith(OUTSIDE) else f"docs/{here}")
    return _without_code(markdown, lambda text: LINK.sub(lambda match: _link(match, place, here), text))


def _link(match: re.Match[str], place: str, here: str) -> str:
    before, target, anchor, after = match[1], match[2], match[3] or "", match[4]
    if target.startswith(EXTERNAL):
        return match[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
    return f"{before}{posixpath.relpath(in_site(file), posixpath.dirname(here) or '.')}{anchor}{after}"


def _without_code(markdown: str, change: Any) -> str:
    """A page with everything changed but what stands in fenced blocks."""
    parts = re.split(r"(^```.*?^```\s*$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def outside() -> set[str]:
    """Files of the repository that pages of the site link to and that are none of ``docs/``, found from page to page."""
    found: set[str] = set()
    waiting = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    while waiting:
        for file in _targets(waiting.pop()):
            place = file.relative_to(ROOT).as_posix()
            if not place.startswith("docs/") and place not in found | MOVED.keys():
                found.add(place)
                waiting += [file] if file.suffix == ".md" else []
    return found


def _targets(page: Path) -> Iterator[Path]:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        file = (page.parent / match[2]).resolve()
        if not match[2].startswith(EXTERNAL) and file.is_file() and file.is_relative_to(ROOT):
            yield file


def publish(version: str, out: Path) -> None:
    """Build the site of a version beside those of others, and the page that leads to the newest.

    Args:
        version: names the folder.
        out: where the versions lie.
    """
    folder = out / version
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode != 0:
        sys.exit("\n".join(line for line in done.stderr.splitlines() if not line.startswith("INFO")))
    names = sorted((path.name for path in out.iterdir() if path.is_dir()), key=_order, reverse=True)
    versions = [{"version": name, "title": name, "aliases": ["latest"] if name == names[0] else []} for name in names]
    (out / "versions.json").write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8", newline="\n")
    leads = f'<meta http-equiv="refresh" content="0; url={names[0]}/index.html">'
    page = f'<!doctype html>\n<meta charset="utf-8">\n{leads}\n<title>tunesmith</title>\n'
    (out / "index.html").write_text(page, encoding="utf-8", newline="\n")


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def main() -> None:
    """Build the site of this version."""
    text = (ROOT / "src" / "tunesmith" / "__init__.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)[0]
    publish(version, ROOT / "site")
    print(f"site/{version}/index.html")


if __name__ == "__main__":
    main()
