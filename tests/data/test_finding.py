from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.finding import excerpt

KEY = "sk-" + "a1B2" * 9


@given(st.text(max_size=300), st.booleans())
def test_an_excerpt_is_short_one_line_and_can_be_written(text, tail):
    shown = excerpt(text, tail)
    shown.encode("utf-8")
    assert "\n" not in shown and "\r" not in shown


def test_an_excerpt_shows_the_start_or_the_end():
    text = "begin " + "x " * 200 + "end"
    assert excerpt(text).startswith("begin x") and excerpt(text).endswith("...") and len(excerpt(text)) == 83
    assert excerpt(text, tail=True).endswith(" x end") and excerpt(text, tail=True).startswith("...")
    assert excerpt("short") == excerpt("short", tail=True) == "short"


def test_a_secret_across_the_cut_is_masked():
    # Cut first and masked then, the first half of the key would stand there, no longer recognised.
    for start in range(40, 90):
        assert KEY[:8] not in excerpt("x" * (start - 1) + " " + KEY)
        assert KEY[-8:] not in excerpt(KEY + " " + "x" * start, tail=True)
