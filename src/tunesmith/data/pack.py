"""Pack documents into micro-batches without a single padding token, and micro-batches into optimizer steps.

An epoch is a shuffle of all documents by (seed, epoch) alone. It is packed as a whole by online best fit: every
document goes into the fullest pack that still has room for it, or opens a new one. The packs are shuffled, and a step
is ``packs_per_step`` of them. Since nothing but (seed, epoch) decides, ``plan[step]`` finds its place by counting and a
resumed run continues where it was. Documents of one pack do not attend to each other and the loss is divided by the
supervised tokens of the whole step, so sharing a pack changes no gradient; sharing a *step* does.

That is why documents are packed in random order and not longest first. Measured on log-normal lengths, one core, 1M
documents; fill ratio, and how alike the documents of a pack are (spread of the packs' mean length; 1 for a random draw):

    median, sigma, capacity      random order         longest first        longest first in windows of 4,096
     60  0.5  1,024              0.996  alike 1.0     0.999  alike 3.6     0.997  alike 3.6
    300  0.8  2,048              0.994  alike 1.3     1.000  alike 1.9     0.999  alike 1.9
    900  0.6  2,048              0.971  alike 1.1     0.995  alike 1.1     0.994  alike 1.1

Sorting buys 0.3 to 2.4 % of the matrix products and pays with steps made of long answers alone or short ones alone.
All take one to two seconds: packs are kept by their free tokens, and the smallest sufficient number is found as the lowest
set bit of a bit mask in two levels of 1,024. Best fit in any order never leaves two packs that would fit into one.

``max_length`` is what the longest document may have. A step is as few packs as hold its tokens, all of one size: 1,000 tokens
are one pack, or two of 500 where ``max_length`` is 512. A document longer than a pack has one alone, and is the only thing
that makes a step larger: one long document in a set of short ones leaves all other steps as small as they were asked to be.
The last step of an epoch may hold fewer packs than the others.

In memory are the lengths (8 bytes a document) and the one epoch that is kept (4 bytes a document, 8 a pack); packing
takes some 50 bytes a document while it lasts.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

Pack = tuple[int, ...]  # documents of one micro-batch
Step = tuple[int, list[Pack]]  # epoch, and the micro-batches of one optimizer step


def best_fit(lengths: list[int], capacity: int) -> tuple[list[int], int]:
    """Online best fit, in the order given.

    Args:
        lengths: tokens of each document, 1 to ``capacity``.
        capacity: tokens of a pack.

    Returns:
        The pack number of each document, and the number of packs.
    """
    assert not lengths or (min(lengths) >= 1 and max(lengths) <= capacity), "a length outside of 1..capacity"
    with_room: list[list[int]] = [[] for _ in range(capacity)]  # packs by their free tokens
    words = [0] * ((capacity >> 10) + 1)  # bit r & 1023 of word r >> 10: there is a pack with r free tokens
    top = 0  # bit w: word w is not zero
    numbers, packs = [0] * len(lengths), 0
    for document, length in enumerate(lengths):
        word = length >> 10
        enough = words[word] >> (length & 1023)
        room = 0
        if enough:
            room = length + (enough & -enough).bit_length() - 1
        elif later := top >> (word + 1):
            word += (later & -later).bit_length()
            room = (word << 10) + (words[word] & -words[word]).bit_length() - 1
        if room:
            same = with_room[room]
            number = same.pop()
            if not same:
                words[word := room >> 10] ^= 1 << (room & 1023)
                if not words[word]:
                    top ^= 1 << word
            room -= length
        else:
            number, packs, room = packs, packs + 1, capacity - length
        numbers[document] = number
        if room:
            with_room[room].append(number)
            words[room >> 10] |= 1 << (room & 1023)
            top |= 1 << (room >> 10)
    return numbers, packs


class Plan:
    """All optimizer steps of a run in order, computed an epoch at a time. A pure function of its arguments.

    ``plan[step]`` costs the same for every step of an epoch; one epoch is kept, another is packed anew when asked for.

    Rows of several documents stay together: what is shuffled and packed is rows, and a step names their documents.

    Args:
        lengths: tokens of each row, 1 to ``max_length``; at least one.
        epochs: passes over all documents.
        tokens_per_step: tokens of an optimizer step, about.
        max_length: largest pack, in tokens.
        seed: decides the order, together with the epoch.
        sizes: documents of each row, which are numbered row after row; None: one each.

    Attributes:
        capacity: tokens that a pack of several documents can hold.
        packs_per_step: packs of every step but the last of an epoch.
        epoch_ends: number of steps done at the end of each epoch.
        fill: tokens over the capacity of all packs; a document longer than that fills its own.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        epochs: int,
        tokens_per_step: int,
        max_length: int,
        seed: int,
        sizes: np.ndarray | None = None,
    ):
        self._lengths = np.asarray(lengths, dtype=np.int64)
        assert len(self._lengths) and epochs >= 1, "nothing to plan"
        self._seed = seed
        self._borders_of_rows = None if sizes is None else np.concatenate([[0], np.cumsum(sizes)])
        self.packs_per_step = -(-tokens_per_step // max_length)
        self.capacity = -(-tokens_per_step // self.packs_per_step)
        self._room = self._lengths.clip(max=self.capacity)  # that a document takes of a pack
        counts = []
        for epoch in reversed(range(epochs)):  # the first is wanted first, and the last computed is kept
            self._keep(epoch)
            counts.insert(0, len(self._borders) - 1)
        steps = [-(-count // self.packs_per_step) for count in counts]
        self.epoch_ends: list[int] = np.cumsum(steps).tolist()
        self.fill = epochs * int(self._room.sum()) / (sum(counts) * self.capacity)

    def __len__(self) -> int:
        return self.epoch_ends[-1]

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        epoch = int(np.searchsorted(self.epoch_ends, step, side="right"))
        if epoch != self._epoch:
            self._keep(epoch)
        first = (step - (self.epoch_ends[epoch - 1] if epoch else 0)) * self.packs_per_step
        borders = self._borders[first : first + self.packs_per_step + 1].tolist()
        members = self._documents[borders[0] : borders[-1]].tolist()
        packs = [tuple(members[a - borders[0] : b - borders[0]]) for a, b in pairwise(borders)]
        return epoch, packs if self._borders_of_rows is None else [self._documents_of(pack) for pack in packs]

    def _documents_of(self, rows: Pack) -> Pack:
        assert self._borders_of_rows is not None
        borders = self._borders_of_rows
        return tuple(document for row in rows for document in range(int(borders[row]), int(borders[row + 1])))

    def __iter__(self) -> Iterator[Step]:
        return (self[step] for step in range(len(self)))

    def _keep(self, epoch: int) -> None:
        """Pack an epoch: its documents pack after pack, and the borders of the packs."""
        random = np.random.PCG64([self._seed, epoch])  # raw draws of a bit generator are the same in every numpy
        order = random.random_raw(len(self._lengths)).argsort(kind="stable")
        numbers, count = best_fit(self._room[order].tolist(), self.capacity)
        place_of_pack = np.empty(count, np.int64)
        place_of_pack[random.random_raw(count).argsort(kind="stable")] = np.arange(count)
        places = place_of_pack[np.array(numbers)]
        self._epoch = epoch
        self._documents = order[places.argsort(kind="stable")].astype(np.int32)
        self._borders = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=count))])
