"""Pack documents into optimizer steps and micro-batches without a single padding token.

An epoch is a permutation of the documents by (seed, epoch) alone. It is cut into optimizer steps of about
``tokens_per_step`` tokens (a step closes with the document that reaches the budget), and the documents of a step are
packed best-fit-decreasing into micro-batches of at most ``max_length`` tokens. Which documents share a pack changes no
gradient, since documents do not attend to each other and the loss is divided by the supervised tokens of the whole
step; it only decides how full the matrix products are. Because the order follows from (seed, epoch), a resumed run
finds its place by counting.
"""

import random

Pack = tuple[int, ...]  # documents of one micro-batch
Step = tuple[int, list[Pack]]  # epoch, and the micro-batches of one optimizer step


def pack_documents(documents: list[int], lengths: list[int], max_length: int) -> list[Pack]:
    """Best-fit-decreasing packs of at most ``max_length`` tokens.

    Args:
        documents: indices into ``lengths``.
        lengths: tokens of each document, all at most ``max_length``.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for document in sorted(documents, key=lambda d: (-lengths[d], d)):
        fits = [index for index, free in enumerate(room) if free >= lengths[document]]
        if fits:
            best = min(fits, key=lambda index: room[index])
            packs[best].append(document)
            room[best] -= lengths[document]
        else:
            packs.append([document])
            room.append(max_length - lengths[document])
    return [tuple(pack) for pack in packs]


def plan_steps(lengths: list[int], epochs: int, tokens_per_step: int, max_length: int, seed: int) -> list[Step]:
    """All optimizer steps of a run, in order. A pure function of its arguments."""
    steps: list[Step] = []
    for epoch in range(epochs):
        order = list(range(len(lengths)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        documents: list[int] = []
        tokens = 0
        for document in order:
            documents.append(document)
            tokens += lengths[document]
            if tokens >= tokens_per_step:
                steps.append((epoch, pack_documents(documents, lengths, max_length)))
                documents, tokens = [], 0
        if documents:
            steps.append((epoch, pack_documents(documents, lengths, max_length)))
    return steps
