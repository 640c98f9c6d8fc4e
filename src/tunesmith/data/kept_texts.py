"""Short texts of all rows, compressed, since only the few that a report shows are looked up again."""

import zlib

_BLOCK = 2048  # texts compressed together: one is looked up in well under a millisecond
_BETWEEN = b"\xff"  # no byte of UTF-8


class KeptTexts:
    """Texts by their number: ``add`` as the rows are read, ``get`` at any time."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[str] = []

    def add(self, texts: list[str]) -> None:
        """Append the texts of a batch."""
        self._open.extend(texts)
        while len(self._open) >= _BLOCK:
            joined = _BETWEEN.join([text.encode("utf-8", "surrogatepass") for text in self._open[:_BLOCK]])
            self._blocks.append(zlib.compress(joined, 1))
            del self._open[:_BLOCK]

    def get(self, numbers: set[int]) -> dict[int, str]:
        """The text of each of ``numbers``, counted from 0."""
        found: dict[int, str] = {}
        block, texts = -1, list[bytes]()
        for number in sorted(numbers):
            if number // _BLOCK >= len(self._blocks):
                found[number] = self._open[number % _BLOCK]
                continue
            if number // _BLOCK != block:
                block = number // _BLOCK
                texts = zlib.decompress(self._blocks[block]).split(_BETWEEN)
            found[number] = texts[number % _BLOCK].decode("utf-8", "surrogatepass")
        return found
