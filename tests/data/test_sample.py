import random
import zlib

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import sample
from tunesmith.data.sample import Sample, Sampled, compression_ratio, distinct_4, diversity, diversity_finding, openings


def filled(contents):
    kept = Sample()
    for number, content in enumerate(contents):
        identity = f"{zlib.crc32(str(content).encode()):08x}"
        if identity < kept.threshold:
            kept.add(content, identity, number, f"prompt {content}", f"answer {content}")
    return kept.rows()


def test_the_sample_does_not_depend_on_order_or_copies():
    contents = list(range(9000))
    first = filled(contents)
    assert len(first) == sample.SIZE
    mixed = contents + contents[:3000] * 2
    random.Random(0).shuffle(mixed)
    assert [row.prompt for row in filled(mixed)] == [row.prompt for row in first]
    # The oracle: all of them, sorted by hash.
    expected = sorted(contents, key=lambda content: f"{zlib.crc32(str(content).encode()):08x}")[: sample.SIZE]
    assert [row.prompt for row in first] == [f"prompt {content}" for content in expected]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=6))
def test_distinct_4_counts_four_grams(texts):
    grams = [tuple(words[start : start + 4]) for words in texts for start in range(len(words) - 3)]
    expected = len(set(grams)) / len(grams) if grams else None
    assert distinct_4([" ".join(words) for words in texts]) == expected


def test_a_template_is_less_diverse_than_prose():
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(3000)]
    prose = [Sampled(n, " ".join(draw.choices(words, k=30)), "yes") for n in range(400)]
    template = [
        Sampled(n, f"Classify the sentiment of this review as one of the following: good, bad. Review {n}", "yes")
        for n in range(400)
    ]
    assert diversity_finding(diversity(prose)) == []
    (finding,) = diversity_finding(diversity(template))
    assert finding.code == "low-diversity" and "not more data" in finding.hint
    assert compression_ratio([]) is None and diversity([]).prompts.distinct_4 is None


def test_shared_openings_are_counted():
    rows = [Sampled(n, "q", f"Dear customer, thank you for message {n} of today") for n in range(30)]
    rows += [Sampled(n, "q", f"{n} is {n} a {n} text {n} of its own {n}") for n in range(30, 100)]
    (finding,) = openings(rows)
    assert (finding.count, finding.of) == (30, 100) and "'Dear customer, thank'" in finding.text
    assert openings(rows[25:]) == []
