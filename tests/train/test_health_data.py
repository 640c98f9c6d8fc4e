"""What the rendered tokens of a part have to teach; read off tokens that are made wrong on purpose."""

import copy

import pytest

from shared import toy_rows
from tunesmith.chat.render import Renderer
from tunesmith.errors import DataError
from tunesmith.rundir import write_rows
from tunesmith.rundir.rows import Row
from tunesmith.train import documents as files
from tunesmith.train.documents import Documents, DocumentWriter
from tunesmith.train.health_data import check_part

ROWS = [Row(f"row-{n}", f"line {n}", row["messages"]) for n, row in enumerate(toy_rows()[:9])]
OPENED = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPENED += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def opening(tokenizer):
    """A template that writes a beginning-of-text token of its own kind; SmolLM2's opens every turn."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = "<|endoftext|>"
    return Renderer(tokenizer, OPENED)


@pytest.fixture
def check(tmp_path, monkeypatch):
    """``check(renderer, change)``: the rows rendered, each changed by ``change(number, ids, supervised)``."""
    monkeypatch.setattr(files, "BATCH_ROWS", 4)  # so that numbers of documents count from a batch's first

    def run(renderer, change=lambda number, ids, supervised: (ids, supervised), rows=ROWS):
        write_rows(tmp_path / "train.jsonl", rows)
        with DocumentWriter(tmp_path / "train.arrow") as writer:
            for number, row in enumerate(rows):
                rendered = renderer.render(row.messages, kind=row.kind)
                writer.add([(row.id, *change(number, rendered.ids, rendered.supervised))])
        return check_part("train", Documents.open(tmp_path / "train.arrow"), tmp_path / "train.jsonl", renderer)

    return run


def test_what_the_renderer_makes_is_healthy(check, renderer, opening):
    for made in (renderer, opening):
        taught = check(made)
        rendered = [made.render(row.messages) for row in ROWS]
        assert taught.share == sum(sum(r.supervised) for r in rendered) / sum(len(r.ids) for r in rendered)
        assert taught.unstopped == 0 and taught.words() == f"{100 * taught.share:.1f} % of train"


def test_a_part_that_teaches_nothing_is_refused(check, renderer):
    with pytest.raises(DataError, match=r"train: none of its \d+ tokens is supervised"):
        check(renderer, lambda number, ids, flags: (ids, [0] * len(ids)))


def test_prompts_that_are_supervised_are_refused_and_plain_texts_are_not(check, renderer):
    texts = [Row(str(n), "", [{"role": "assistant", "content": "ab c"}], kind="text") for n in range(5)]
    assert check(renderer, rows=texts).share == 1.0
    with pytest.raises(DataError, match="every token is supervised, the prompts too, first row row-0, line 0"):
        check(renderer, lambda number, ids, flags: (ids, [1] * len(ids)))
    with pytest.raises(DataError, match="the prompts too, first row row-0, line 0"):  # all but the opening token
        check(renderer, lambda number, ids, flags: (ids, [int(number < 5)] + [1] * (len(ids) - 1)), [*texts, *ROWS])


def _without_stop(ids, flags):
    last = len(flags) - 1 - flags[::-1].index(1)
    return ids, [*flags[:last], *[0] * (len(flags) - last)]


def test_a_mask_without_the_stop_token_is_refused_or_told(check, renderer):
    with pytest.raises(DataError, match=r"no row's supervised tokens end in a stop token \(<\|im_end\|>\)"):
        check(renderer, lambda number, ids, flags: _without_stop(ids, flags))
    some = check(renderer, lambda number, ids, flags: _without_stop(ids, flags) if number in (5, 8) else (ids, flags))
    assert some.unstopped == 2 and some.first_unstopped == "row-5"
    assert "(2 rows end without a stop token, first row-5)" in some.words()


@pytest.mark.parametrize("row", [0, 6])
def test_a_second_beginning_of_text_is_refused(check, renderer, opening, row):
    for made, place in ((renderer, 1), (opening, 1), (opening, 7)):
        bos = made.tokenizer.bos_token_id

        def twice(number, ids, flags, place=place, bos=bos):
            return ([*ids[:place], bos, *ids[place:]], [*flags[:place], 0, *flags[place:]]) if number == row else (ids, flags)

        with pytest.raises(DataError, match=rf"row row-{row}: token {place + 1} is a beginning-of-text token \(id {bos}\)"):
            check(made, twice)
