"""Answers by choosing: how likely is each label as the answer, and which is the likeliest.

A written answer is one label or none; its probability says how sure the model is, which is what a threshold needs ("decide
by yourself above 95 %, ask a person below"). So the engine scores every label as the answer to a prompt, and the answer is
the distribution over the labels, as JSON, the likeliest first. It is the softmax of the labels' log-probabilities, each summed
over its tokens: what the model would say if it said one of them. Refused: the mean over tokens, which is the probability of
nothing; the first token alone, which labels may share.

Cost: a forward pass of a prompt and of every label, and none for writing; in process the labels share the prompt's.

Shape suffixes here: C labels.
"""

import json
import time

import numpy as np

from tunesmith.engines.engine import Advance, Answer, Engine
from tunesmith.messages import Message


def choose(engine: Engine, prompts: list[list[Message]], labels: tuple[str, ...], advance: Advance) -> list[Answer]:
    """The distribution over labels as the answer to every prompt, in order.

    Raises:
        RunError: the engine gives no log-probabilities, or a prompt does not fit its context.
    """
    started, scores_seen = time.perf_counter(), 0

    def count(scores: int) -> None:
        nonlocal scores_seen
        advance((scores_seen + scores) // len(labels) - scores_seen // len(labels))
        scores_seen += scores

    scores = engine.score([(prompt, label) for prompt in prompts for label in labels], count)
    seconds = (time.perf_counter() - started) / max(1, len(prompts))
    answers: list[Answer] = []
    for place in range(0, len(scores), len(labels)):
        own = scores[place : place + len(labels)]
        logprob_C = np.array([score.logprob for score in own])
        p_C = np.exp(logprob_C - logprob_C.max())
        p_C /= p_C.sum()
        order = np.argsort(-p_C, kind="stable").tolist()
        text = json.dumps({labels[i]: round(float(p_C[i]), 6) for i in order}, ensure_ascii=False)
        answers.append(Answer(text, own[0].prompt_tokens, own[order[0]].tokens, seconds, finished=True))
    return answers
