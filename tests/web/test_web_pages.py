"""Pages over real and written runs: what they say, what they refuse, and that nothing of a run's text is markup."""

import os
import re
import shutil
import time
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient
from web_runs import HOSTILE, answer, make_run, step, train, warn, write_events

from tunesmith.errors import RunError
from tunesmith.rundir import lock
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.events import StageEnd, StageStart
from tunesmith.web.application import application


def _client(folder, **keys):
    return TestClient(application(folder, **keys), base_url="http://localhost:8765", follow_redirects=False)


VOID = {"meta", "link", "input", "br"}


class _Strict(HTMLParser):
    """Every tag is closed where it should be, ids are there once, and nothing in the page runs or is loaded from elsewhere."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.offences = [], [], []
        self.feed(page)
        self.close()
        if self.open:
            self.offences.append(f"not closed: {self.open}")
        self.offences += [f"id twice: {name}" for name in self.ids if self.ids.count(name) > 1]

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        self.offences += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        if (tag == "script" and given.get("src") != "/static/page.js") or tag in ("style", "img", "iframe", "object"):
            self.offences.append(f"{tag} {given}")
        for name in ("href", "src", "action"):
            if not (given.get(name) or "/").startswith(("/", "#")):
                self.offences.append(f"{tag} {name} {given[name]}")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.offences.append(f"closed out of order: {tag}")


def _text(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with a run whose every text is markup, and with things that are no runs."""
    folder = tmp_path_factory.mktemp("hostile")
    run = make_run(folder, 'a "<b>&?#')
    answer(run, "instruction", [1.0, 0.0, 0.0, None], HOSTILE)
    answer(run, "tuned", [1.0, 1.0, 0.0, 1.0], HOSTILE, finished=False)
    train(run)
    warn(run, HOSTILE)
    write_events(run, StageEnd(stage="train", outcome="failed", seconds=1.0, error=HOSTILE))
    (folder / "no run").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "recipe.yaml").write_text("model: [")
    return folder


def test_every_page_is_whole_and_no_text_of_a_run_is_markup(hostile, tiny_run):
    folder = hostile
    client, real = _client(folder), _client(tiny_run.path)
    run = "/runs/a%20%22%3Cb%3E%26%3F%23"
    addresses = ["/", run, f"{run}/answers", f"{run}/answers?show=all", f"/compare?a={run[6:]}&b={run[6:]}"]
    pages = {address: client.get(address, headers={"accept": "text/html"}) for address in addresses}
    pages |= {f"real {address}": real.get(address) for address in ("/", "/runs/run", "/runs/run/answers?show=all")}
    pages["wrong"] = client.get(f"/runs/{run[6:]}no", headers={"accept": "text/html"})
    for address, page in pages.items():
        assert page.status_code == (404 if address == "wrong" else 200), (address, page.text)
        assert _Strict(page.text).offences == [], address
        assert "<script>alert" not in page.text and "onerror=alert(2)>" not in page.text and "\u202e" not in page.text, address
        assert "default-src 'none'" in page.headers["content-security-policy"] and "unsafe" not in str(page.headers)
    assert "failed in train" in _text(pages[run].text) and "&lt;script&gt;" in pages[run].text


def test_a_finished_run_shows_what_its_records_say(tiny_run):
    page = _client(tiny_run.path).get("/runs/run").text
    verdict, text = Verdict.read(tiny_run.verdict_file), _text(page)
    assert f"Verdict: {verdict.decision}" in text and verdict.reason in text
    assert all(arm.name in text for arm in verdict.arms) and "best dev loss" in text and "Not yet" not in text
    assert "done" in text and "stale" not in text and page.count("<svg") >= len(verdict.arms) + 2
    report = _client(tiny_run.path).get("/runs/run/report")
    assert report.status_code == 200 and report.headers["content-security-policy"].endswith("sandbox")


def test_the_list_names_every_run_and_what_is_wrong_with_the_others(hostile):
    folder = hostile
    text = _text(_client(folder).get("/").text)
    assert "failed" in text and "a &#34;&lt;b&gt;" in text and "broken" in text and "no run" not in text


def test_a_run_that_works_says_where_it_is_and_one_that_was_killed_how_to_go_on(tmp_path):
    run = make_run(tmp_path)
    train(run, 4)
    client = _client(tmp_path)
    with lock.writing(run.path):
        page = client.get("/runs/toy").text
        assert "running : train" in _text(page) and f"kill -INT {os.getpid()}" in page and 'http-equiv="refresh"' in page
    page = client.get("/runs/toy").text
    assert "killed in train" in _text(page) and f"tunesmith run {run.path}" in page and "step 4" in page
    assert 'http-equiv="refresh"' not in page


def test_arms_stand_there_as_they_finish_with_the_interval_of_their_rows(tmp_path):
    run = make_run(tmp_path)
    answer(run, "instruction", [1.0, 0.0, 1.0, 1.0])
    answer(run, "few_shot", [0.5, 0.25, 1.0, 0.0, None])
    text = _text(_client(tmp_path).get("/runs/toy/parts?names=arms").text)
    assert "instruction 75.0 30.1 to 95.4 4" in text  # Wilson's, of 3 in 4
    assert re.search(r"few_shot 43\.8 \d+\.\d to \d+\.\d 4", text)


def test_a_figure_that_is_no_number_is_said(tmp_path):
    run = make_run(tmp_path)
    write_events(run, StageStart(stage="train"), step(1), step(2, norm=None), step(3))
    assert "gradient norm: no finite number at 1 of the steps, first at step 2" in _client(tmp_path).get("/runs/toy").text


@pytest.mark.parametrize(
    ("query", "rows", "words"),
    [
        ("", ["Row 2"], "only tuned 1"),
        ("show=only-tuned", ["Row 2"], "only instruction 1"),
        ("show=only-prompt", ["Row 4"], "both miss 1"),
        ("show=neither", ["Row 3"], "cut off 1"),
        ("show=cut", ["Row 1"], "all rows 5"),
        ("show=all&first=3", ["Row 4", "Row 5"], "4 to 5 of 5"),
        ("show=all&first=99", [], "No such row"),
        ("show=nonsense&first=-1&ours=nobody", ["Row 2"], "only tuned"),
        ("ours=instruction&theirs=tuned&show=only-tuned", ["Row 4"], "only instruction 1"),
    ],
)
def test_rows_by_who_was_right(tmp_path, query, rows, words):
    run = make_run(tmp_path)
    answer(run, "instruction", [1.0, 0.0, 0.0, 1.0, None])
    answer(run, "tuned", [1.0, 1.0, 0.0, 0.0, 1.0], finished=False)
    page = _client(tmp_path).get(f"/runs/toy/answers?{query}").text
    assert re.findall(r"Row \d", page) == rows and words in _text(page)


@pytest.mark.parametrize("change", [lambda text: text.replace("row1", "row7"), lambda text: text.splitlines(True)[0]])
def test_rows_that_do_not_belong_together_are_refused(tmp_path, change):
    run = make_run(tmp_path)
    answer(run, "instruction", [1.0, 0.0])
    answer(run, "tuned", [1.0, 1.0])
    file = run.answers("tuned") / "outputs.jsonl"
    file.write_text(change(file.read_text()))
    page = _client(tmp_path).get("/runs/toy/answers")
    assert page.status_code == 500 and "row 2 is another one" in page.text and "hint:" in page.text


def test_a_damaged_file_spoils_its_own_part_alone(tmp_path):
    run = make_run(tmp_path)
    train(run)
    run.verdict_file.parent.mkdir()
    run.verdict_file.write_text("{}")
    text = _text(_client(tmp_path).get("/runs/toy").text)
    assert "cannot be shown" in text and "a Verdict is expected there" in text and "gradient norm" in text


def test_two_runs_are_compared_by_keys_rows_and_losses(tmp_path, tiny_run):
    shutil.copytree(tiny_run.path, tmp_path / "one")
    shutil.copytree(tiny_run.path, tmp_path / "two")
    recipe = tmp_path / "two" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.002", "learning_rate: 0.004"))
    page = _client(tmp_path).get("/compare?a=one&b=two").text
    assert "train.learning_rate 0.002 -&gt; 0.004" in page and "with the same sealed test part" in page and "<polyline" in page
    assert _client(tmp_path).get("/compare?a=one&b=../one").status_code == 404


@pytest.mark.parametrize("path", ["/runs/%2e%2e", "/runs/..%2Fother", "/runs/.hidden", "/static/../application.py"])
def test_a_name_never_reaches_the_disk_as_a_path(tmp_path, path):
    make_run(tmp_path / "runs")
    make_run(tmp_path, "other")
    assert _client(tmp_path / "runs").get(path).status_code == 404


def test_a_name_that_is_no_text_spoils_no_page(tmp_path):
    make_run(tmp_path, "toy").path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/toy\xff"))
    client = _client(tmp_path)
    assert '<a href="/runs/toy%3F">toy?</a>' in client.get("/").text
    assert client.get("/runs/toy%3F").status_code == 200


def test_a_folder_may_be_empty_and_must_be_there(tmp_path):
    assert "No run yet" in _client(tmp_path).get("/").text
    with pytest.raises(RunError, match="no such folder"):
        application(tmp_path / "none")


def test_looking_writes_nothing_and_keeps_no_writer_out(tmp_path):
    run = make_run(tmp_path)
    train(run)
    with lock.writing(run.path):
        pass
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    client = _client(tmp_path)
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        client.get("/runs/toy/parts?names=now")
        lock.writer_of(run.path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
