import re
from html.parser import HTMLParser


class _Balance(HTMLParser):
    void = frozenset({"meta", "br", "path", "use", "rect", "circle", "line"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.void or self.open.pop() == tag, tag


def test_page_is_whole_self_contained_and_holds_the_numbers(tiny_run):
    from tunesmith.rundir import read_json

    page = tiny_run.report_file.read_text()
    parser = _Balance()
    parser.feed(page.replace("<!doctype html>", ""))
    assert parser.open == []
    outside = re.sub(r"http://www\.w3\.org/\S+|https?://(matplotlib|purl|creativecommons)\.org\S*", "", page)
    assert not re.search(r"(src|href)=.https?:", outside) and "@import" not in outside
    verdict = read_json(tiny_run.verdict_file)
    assert f"Verdict: {verdict['verdict']}" in page
    for arm in verdict["arms"]:
        assert f"<td>{arm['arm']}</td><td>{100 * arm['score']:.1f}</td>" in page
    assert page.count("<svg") == 2 and page.count('class="example"') >= 1


def test_what_models_say_is_escaped(tiny_run, tmp_path):
    import shutil

    from tunesmith import api
    from tunesmith.rundir import RunDir, read_rows, write_rows

    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    for arm in ("zero_shot", "deployed"):
        file = run.evaluation / arm / "outputs.jsonl"
        write_rows(file, [{**row, "output": "<script>alert(1)</script>"} for row in read_rows(file)])
    page = api.report(run).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
