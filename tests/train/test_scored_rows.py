"""The rows of a pass that scores layers: drawn, bounded, and only those that teach."""

import pytest

from tunesmith.errors import DataError
from tunesmith.train.documents import make_documents, supervised_tokens
from tunesmith.train.scored_rows import PACK, ROWS, TOKENS, packs_of, scored_rows


def _documents(*rows):
    """Documents of so many tokens, of which the last ones are supervised."""
    return make_documents([([5] * tokens, [0] * (tokens - last) + [1] * last) for tokens, last in rows])


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([(10, 1)] * 1000, ROWS),
        ([(1000, 1)] * 40, TOKENS // 1000),
        ([(TOKENS + 1, 1)], 1),  # one is taken whatever it has
        ([(10, 0)] * 500 + [(10, 1)] * 3, 3),  # rows that teach nothing take no place
    ],
)
def test_rows_are_drawn_until_there_are_enough(rows, count):
    documents = _documents(*rows)
    chosen = scored_rows(documents, 3)
    assert len(set(chosen)) == len(chosen) == count and all(len(documents.spans(row)) for row in chosen)
    assert chosen == scored_rows(documents, 3) and (count < 4 or chosen not in (sorted(chosen), scored_rows(documents, 4)))


def test_no_row_to_score_with_is_an_error():
    with pytest.raises(DataError, match="none of 2 train rows has a supervised token"):
        scored_rows(_documents((9, 0), (9, 0)), 0)


def test_packs_hold_the_rows_in_their_order_and_a_long_one_whole():
    packs = packs_of(_documents((300, 2), (PACK + 88, 3), (200, 4), (212, 5)), [0, 2, 1, 3])
    assert [pack.ids_1T.shape[1] for pack in packs] == [500, PACK + 88, 212] and supervised_tokens(packs) == 14
