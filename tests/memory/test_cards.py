"""The data file of GPUs."""

from datetime import date

import pytest

from tunesmith.memory.cards import Figure, as_of, cards, find_card

WANTED = "T4,RTX 3060 12GB,RTX 3090,RTX 4060 Ti 16GB,RTX 4090,RTX 5090,L4,A10G,A100 40GB,A100 80GB,L40S,H100 SXM,H200,B200"


def figures(card):
    return {name: value for name, value in vars(card).items() if isinstance(value, Figure)}


def test_every_number_says_where_it_comes_from():
    assert [card.name for card in cards()] == WANTED.split(",") and date.fromisoformat(as_of())
    for card in cards():
        kinds = {name: figure.kind for name, figure in figures(card).items()}
        assumed = {"link", "share", "launch"}
        assert all(
            kind == ("assumed" if name in assumed else "listed" if name == "rent" else "datasheet")
            for name, kind in kinds.items()
        )
        assert all(figure.source and figure.value > 0 for figure in figures(card).values()), card.name


def test_numbers_are_in_their_units():
    for card in cards():
        assert 10e9 < card.memory_bytes.value < 300e9 and 200e9 < card.bandwidth.value < 1e13 and 5e9 < card.link.value < 1e11
        assert 1e13 < card.fp16.value < 5e15 and 0.3 < card.share.value < 1 and 1e-6 < card.launch.value < 2e-5
        assert (card.compute == "fp16") == (card.capability < (8, 0)) and card.product < card.fp16.value


@pytest.mark.parametrize(("said", "name"), [("NVIDIA H100 80GB HBM3", "H100 SXM"), (" tesla t4 ", "T4"), ("l40s", "L40S")])
def test_a_card_is_found_by_what_nvidia_smi_says(said, name):
    found = find_card(said)
    assert found is not None and found.name == name


def test_no_alias_means_two_cards_and_an_unknown_one_none():
    names = [name.casefold() for card in cards() for name in {card.name, *card.aliases}]
    assert len(names) == len(set(names)) and find_card("Radeon VII") is None
