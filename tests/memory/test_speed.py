"""The prediction of a step's time, by hand and by what must grow with what."""

import dataclasses

import pytest

from tunesmith.memory.cards import Figure, cards, find_card
from tunesmith.memory.speed import LAUNCHES, LayerBytes, Sizes, fits, launches, step_time
from tunesmith.memory.techniques import sizes

TINY = Sizes(hidden=4, intermediate=8, layers=2, query=4, key_value=2, vocab=10, tied=True)
EIGHT = Sizes.of(next(size.shape for size in sizes() if size.name == "8B"))


def card(**figures):
    """An H100 with round numbers."""
    found = find_card("H100 SXM")
    assert found is not None
    return dataclasses.replace(found, **{name: Figure(value, "assumed", "a test") for name, value in figures.items()})


def test_sizes_by_hand():
    # attention 4 x (4 + 4 + 2 + 2), mlp 3 x 4 x 8; a rank-1 adapter: 4 x 4 + 2 x 4 + 2 x 2 + 3 x (4 + 8)
    assert (TINY.linear, TINY.adapter_per_rank) == (48 + 96, 2 * 64)
    assert TINY.weights_bytes == pytest.approx(2 * 144 * 0.515869 + 80, rel=1e-5)
    assert EIGHT.linear == 218_103_808 and EIGHT.adapter_per_rank * 16 == 41_943_040


def test_a_layers_bytes_by_hand():
    none, layer = (LayerBytes.of(TINY, 10, policy, "bf16") for policy in ("none", "layer"))
    # rows of the four groups: 4+8, 4+4, 4+16, 8+4 = 52 numbers a token
    assert none.products == 2 * 2 * (144 + 10 * 52)
    assert layer.products == none.products / 2 * 3 - 2 * (4 * 8 + 10 * 12), "the last product is not computed again"
    assert none.unpacking == pytest.approx(2 * 144 * 2.515869, rel=1e-5)
    # ahead 8 x 4 + 4 x 6 + 3 x 8 = 80, back 8 x 4 + 6 x 6 + 6 x 8 = 116, in 2 bytes, touched 1.8 times
    assert none.between == pytest.approx(1.8 * 2 * 10 * 196) and layer.between == pytest.approx(1.8 * 2 * 10 * 276)


def test_terms_by_hand():
    plain = card(fp16=1e6, bf16=1e6, share=0.5, bandwidth=1e9, launch=1e-6)
    time = step_time(TINY, 10, 2, plain, "none", r=1, packs=2, document=4)
    base, head, attention = 4 * 2 * 144 * 10 + 6 * 128 * 10, 4 * 2 * 10 * 4, 12 * 2 * 4 * 10 * 2
    assert time.products == pytest.approx((base + head) / 5e5) and time.attention == pytest.approx(attention / 2e5)
    assert time.loss == pytest.approx(2 * 10 * 16 / 0.85e9) and time.optimizer == pytest.approx(128 * 48 / 0.85e9 / 2)
    assert time.launches == pytest.approx((2 * LAUNCHES["bf16", "none"] + 110) * 1e-6)
    assert time.flops == base + head + attention and time.seconds == time.device
    assert time.share == pytest.approx(time.flops / time.device / 5e5)
    host = step_time(TINY, 10, 2, card(launch=1.0), "none", r=1)
    assert host.seconds == host.launches > host.device


MIXTURE = dataclasses.replace(TINY, intermediate=0, experts=6, chosen=2, expert=3)


def test_a_mixture_by_hand():
    # attention 48 as above; a token passes 2 experts of 3 x 4 x 3, of which there are 6
    assert (MIXTURE.linear, MIXTURE.used) == (48 + 6 * 36, 48 + 2 * 36)
    assert (MIXTURE.adapter_per_rank, MIXTURE.used_adapter_per_rank) == (2 * (28 + 6 * 21), 2 * (28 + 2 * 21))
    assert MIXTURE.weights_bytes == pytest.approx(2 * 264 * 0.515869 + 80, rel=1e-5)
    none, layer = (LayerBytes.of(MIXTURE, 10, policy, "bf16") for policy in ("none", "layer"))
    # all experts are unpacked and read; rows are 4+8, 4+4, 2 x (4+6), 2 x (3+4) = 54 numbers a token
    assert none.unpacking == pytest.approx(2 * 264 * 2.515869, rel=1e-5)
    assert none.products == 2 * 2 * (264 + 10 * 54) and layer.products == 3 * 2 * (264 + 10 * 54)
    # and every row of two pairs of token and expert is touched 17 times ahead and 35 times back
    assert none.between == pytest.approx(2 * 10 * (1.8 * (32 + 24 + 3 * 6 + 32 + 36 + 6 * 6) + 2 * 4 * 52))
    plain = card(fp16=1e6, bf16=1e6, share=0.5, bandwidth=1e9, launch=1e-6)
    time = step_time(MIXTURE, 10, 2, plain, "none", r=1, packs=2, document=4)
    assert time.products == pytest.approx((4 * 2 * 120 * 10 + 6 * 140 * 10 + 4 * 2 * 10 * 4) / 5e5)
    assert time.optimizer == pytest.approx(308 * 48 / 0.85e9 / 2) and time.launches == pytest.approx((2 * 131 + 110) * 1e-6)
    recomputed = step_time(MIXTURE, 10, 2, plain, "layer", r=1)
    assert recomputed.products * 5e5 == pytest.approx(6 * 2 * 120 * 10 + 8 * 140 * 10 + 4 * 2 * 10 * 4)


def test_windows_by_hand():
    one = dataclasses.replace(TINY, windowed=1, window=2)
    # of a document of 4: 1, 2, 3, 4 tokens seen are 2 a token as an area; in a window of 2, 2 - 4 / 8
    assert (TINY.seen(4), one.seen(4), one.seen(2), one.seen(1)) == (4.0, 2 + 1.5, 2.0, 1.0)
    plain = card(fp16=1e6, bf16=1e6, share=0.5)
    assert step_time(one, 10, 2, plain, document=4).attention == pytest.approx(12 * 4 * 10 * 3.5 / 2e5)


def test_an_8b_pack_on_an_h100_is_what_the_first_run_is_held_to():
    """Written before any measurement: change it together with docs/explanation/gpu.md, and say why in docs/LOG.md."""
    time = step_time(EIGHT, 2048, 287, card(), "layer", packs=4)
    assert (time.seconds * 1e3, time.share) == (pytest.approx(156, abs=1), pytest.approx(0.65, abs=0.01))


@pytest.mark.parametrize("name", [card.name for card in cards()])
def test_what_must_grow_grows(name):
    one = find_card(name)
    assert one is not None
    base = step_time(EIGHT, 2048, 287, one)
    more = {
        "tokens": step_time(EIGHT, 4096, 287, one),
        "supervised": step_time(EIGHT, 2048, 2048, one),
        "recompute": step_time(EIGHT, 2048, 287, one, "layer"),
        "rank": step_time(EIGHT, 2048, 287, one, r=64),
        "layers": step_time(dataclasses.replace(EIGHT, layers=33), 2048, 287, one),
        "documents": step_time(EIGHT, 2048, 287, one, document=2048),
        "slower memory": step_time(EIGHT, 2048, 287, dataclasses.replace(one, bandwidth=Figure(1e11, "assumed", "a test"))),
    }
    assert not [what for what, time in more.items() if time.seconds <= base.seconds]
    assert 0 < base.share < 1 and step_time(EIGHT, 8192, 1148, one).share > base.share  # unpacking is paid once a pack


def test_weights_that_do_not_fit_and_launches_that_were_not_walked():
    t4 = find_card("T4")
    assert t4 is not None and fits(EIGHT, t4) and not fits(dataclasses.replace(EIGHT, layers=120), t4)
    assert launches("fp16", "layer") == pytest.approx(368 * LAUNCHES["bf16", "layer"] / LAUNCHES["bf16", "none"])
