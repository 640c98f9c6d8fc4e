"""What is published: a release that refuses, links of the site, licences, files of a wheel, and the containers' steps.

The tools themselves run in CI (``make site``, ``make wheel``); here is what they must refuse.
"""

import importlib
import json
import re
import subprocess
import tarfile
import zipfile

import pytest

import tunesmith
from shared import ROOT

CHANGELOG = "# Changelog\n\n## 0.2.0\n\n### Train\n\n- Train.\n\n## 0.1.0\n\n- Begin.\n"


@pytest.fixture
def tools(monkeypatch):
    """A function: a module of the folder, which is no package."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


@pytest.fixture
def repository(tools, tmp_path, monkeypatch):
    """A small repository in the place of this one."""
    files = {
        "src/tunesmith/__init__.py": '__version__ = "0.2.0"\n',
        "CITATION.cff": "version: 0.2.0\n",
        "CHANGELOG.md": CHANGELOG,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "Begin"], ["tag", "v0.1.0"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(tools("release"), "ROOT", tmp_path)
    monkeypatch.setattr(tools("wheel"), "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("version", "file", "text", "words"),
    [
        ("0.2", None, "", "0.2 is no version"),
        ("v0.2.0", None, "", "v0.2.0 is no version"),
        ("0.3.0", None, "", "__init__.py names 0.2.0, expected 0.3.0"),
        ("0.2.0", "CITATION.cff", "version: 0.1.0\n", "CITATION.cff names 0.1.0"),
        ("0.2.0", "CHANGELOG.md", "# Changelog\n\n## 0.1.0\n\n- Begin.\n", "CHANGELOG.md names 0.1.0"),
        ("0.2.0", "CHANGELOG.md", CHANGELOG.replace("## 0.2.0", "## Next\n\n- Ask.\n\n## 0.2.0"), "CHANGELOG.md names Next"),
        ("0.2.0", "CHANGELOG.md", CHANGELOG.replace("- Train.\n", ""), "no line that says what"),
        ("0.2.0", "notes.txt", "x", r"1 files are not committed \(\?\? notes.txt\)"),
    ],
)
def test_a_release_refuses_before_it_builds(version, file, text, words, tools, repository, monkeypatch):
    release = tools("release")
    monkeypatch.setattr(release, "make_files", lambda *_: pytest.fail("it was built"))
    if file:
        (repository / file).write_text(text)
    with pytest.raises(tools("smoke").Failure, match=words):
        release.release(version, dry_run=True)


def test_a_release_tags_once_and_a_dry_run_does_not(tools, repository, monkeypatch, capsys):
    release = tools("release")
    monkeypatch.setattr(release, "make_files", lambda *_: None)
    release.release("0.2.0", dry_run=True)
    tags = ["git", "tag", "--list"]
    assert subprocess.run(tags, cwd=repository, capture_output=True, text=True).stdout.split() == ["v0.1.0"]
    for name, value in {"AUTHOR": "a", "COMMITTER": "a"}.items():
        monkeypatch.setenv(f"GIT_{name}_NAME", value)
        monkeypatch.setenv(f"GIT_{name}_EMAIL", f"{value}@example.com")
    release.release("0.2.0", dry_run=False)
    assert subprocess.run(tags, cwd=repository, capture_output=True, text=True).stdout.split() == ["v0.1.0", "v0.2.0"]
    with pytest.raises(tools("smoke").Failure, match=r"v0\.2\.0 is tagged already"):
        release.release("0.2.0", dry_run=False)
    assert "twine upload" in capsys.readouterr().out


def _distributions(tools, folder, wheel_files, sdist_files):
    wheel, sdist = folder / "a.whl", folder / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in (*wheel_files, "a.dist-info/METADATA"):
            file.writestr(name, "x")
    (folder / "one").write_text("x")
    with tarfile.open(sdist, "w:gz") as file:
        for name in (*sdist_files, "PKG-INFO"):
            file.add(folder / "one", f"a-1/{name}")
    return tools("wheel").Built(sdist, wheel, "1")


@pytest.mark.parametrize(
    ("wheel_files", "sdist_files", "words"),
    [
        ([], ["src/tunesmith/__init__.py"], "the wheel lacks 1 files: src/tunesmith/__init__.py"),
        (
            ["tunesmith/__init__.py", "tests/x.py"],
            ["src/tunesmith/__init__.py"],
            "the wheel has 1 files that git does not know",
        ),
        (["tunesmith/__init__.py"], ["CHANGELOG.md"], "the sdist lacks 1 files: src"),
        (
            ["tunesmith/__init__.py"],
            ["src/tunesmith/__init__.py", "CHANGELOG.md", "key"],
            "the sdist has 1 files that git does not know: key",
        ),
    ],
)
def test_a_wheel_has_the_files_of_the_repository_and_no_other(
    wheel_files, sdist_files, words, tools, repository, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("dist")
    with pytest.raises(tools("smoke").Failure, match=re.escape(words)):
        tools("wheel").check_files(_distributions(tools, folder, wheel_files, sdist_files))


def test_links_of_the_site_stay_in_it(tools):
    website = tools("website")
    page = type("Page", (), {"file": type("File", (), {"src_uri": "how-to/notebook.md"})})
    code = "```\n[e](f)\n```\n"
    text = f"[a](../../examples/own_loop.py) [b](../README.md#x) [c](../../README.md) [d](https://x/y)\n{code}"
    expected = f"[a](../source/examples/own_loop.py) [b](../documentation.md#x) [c](../index.md) [d](https://x/y)\n{code}"
    assert website.on_page_markdown(text, page) == expected
    assert {"examples/own_loop.py", "CONTRIBUTING.md"} <= website.outside()


def test_a_licence_that_asks_for_something_is_named(tools):
    licences = tools("licences")
    entries = [("a", "MIT"), ("b", "GPL-3.0-or-later"), ("c", ""), ("orjson", "MPL-2.0"), ("d", "LGPL-2.1")]
    lines = licences.to_look_at([licences.Licence(name, "1", text, "expression") for name, text in entries])
    assert [line.split()[0] for line in lines] == ["b", "c", "d"]
    assert {name for name, _ in licences.packages()} >= {"torch", "numpy", "mkdocs-material"}


def test_rows_of_the_matrix_stay_until_they_are_made_anew(tools):
    row = tools("matrix").Row
    old, new = (row("installed", f"3.14.{patch}", "Linux", "core", "ok", 25, 400, 3.0, "2026-11-30") for patch in (0, 8))
    assert old.key == new.key != row("installed", "3.14.8", "Linux", "train", "ok", 70, 400, 3.0, "2026-11-30").key


def test_the_containers_take_what_the_wheel_is_built_from():
    """``COPY`` finds what ``.dockerignore`` lets through; every image runs as a user."""
    text = (ROOT / "Dockerfile").read_text()
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert set(copied) == let_through and all((ROOT / name).exists() for name in copied)
    for image in ("cpu", "cuda"):
        stage = re.search(rf"^FROM base AS {image}\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)
        assert stage and stage[1].strip().endswith("USER 1000")


def test_the_notebook_is_one_and_hosted_ones_install_first():
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5) and notebook["metadata"]["kernelspec"][
        "language"
    ] == "python"
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == (keys | {"execution_count", "outputs"} if cell["cell_type"] == "code" else keys)
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert "pip" in "".join(first["source"])


def test_one_version_stands_in_every_place(tools):
    tools("release").check_version(tunesmith.__version__)
