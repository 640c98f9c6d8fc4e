"""Rendered documents as tensors: on disk as one safetensors file, in memory as packs.

A pack is one row of T tokens: documents one after another, positions restarting at each, borders in ``cu_seqlens``.
The supervised positions are those whose *next* token is supervised; the last token of a document predicts nothing.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import RunError


@dataclass(frozen=True)
class Documents:
    """Token ids and supervision of many documents, end to end.

    Attributes:
        ids_T: int64, all documents one after another.
        supervised_T: bool, which of them are supervised.
        offsets: document borders in both, one more than there are documents.
    """

    ids_T: Tensor
    supervised_T: Tensor
    offsets: list[int]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [b - a for a, b in pairwise(self.offsets)]


@dataclass(frozen=True)
class Pack:
    """One micro-batch without padding.

    Attributes:
        ids_1T, position_1T: int64, shape (1, T).
        cu_seqlens: document borders, from 0 to T.
        predict_N: positions whose next token is supervised, int64.
        target_N: that next token, int64.
    """

    ids_1T: Tensor
    position_1T: Tensor
    cu_seqlens: list[int]
    predict_N: Tensor
    target_N: Tensor


def make_documents(rendered: list[tuple[list[int], list[int]]]) -> Documents:
    """Documents from pairs of (ids, supervised)."""
    offsets = [0]
    for ids, _ in rendered:
        offsets.append(offsets[-1] + len(ids))
    flat_ids = [token for ids, _ in rendered for token in ids]
    flat_supervised = [flag for _, supervised in rendered for flag in supervised]
    return Documents(torch.tensor(flat_ids), torch.tensor(flat_supervised, dtype=torch.bool), offsets)


def make_pack(documents: Documents, chosen: tuple[int, ...]) -> Pack:
    """The chosen documents as one micro-batch."""
    spans = [(documents.offsets[d], documents.offsets[d + 1]) for d in chosen]
    cu_seqlens = [0]
    for a, b in spans:
        cu_seqlens.append(cu_seqlens[-1] + b - a)
    ids_T = torch.cat([documents.ids_T[a:b] for a, b in spans])
    supervised_T = torch.cat([documents.supervised_T[a:b] for a, b in spans])
    position_T = torch.cat([torch.arange(b - a) for a, b in spans])
    next_supervised_T = supervised_T.roll(-1)
    next_supervised_T[torch.tensor(cu_seqlens[1:]) - 1] = False
    predict_N = next_supervised_T.nonzero()[:, 0]
    return Pack(ids_T[None], position_T[None], cu_seqlens, predict_N, ids_T[predict_N + 1])


def save_documents(path: Path, parts: dict[str, Documents]) -> None:
    """Write the documents of several parts as one file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for part, documents in parts.items():
        tensors[f"{part}.ids"] = documents.ids_T
        tensors[f"{part}.supervised"] = documents.supervised_T
        tensors[f"{part}.offsets"] = torch.tensor(documents.offsets)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


def load_documents(path: Path, part: str) -> Documents:
    """Read one part's documents.

    Raises:
        RunError: the render stage has not been run.
    """
    if not path.exists():
        raise RunError(f"{path}: no rendered documents", "run: tunesmith render RUN")
    tensors = load_file(path)
    return Documents(tensors[f"{part}.ids"], tensors[f"{part}.supervised"], tensors[f"{part}.offsets"].tolist())
