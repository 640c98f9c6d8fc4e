"""The page on which the models of a run are asked: base, best prompt and deployed model, side by side.

A form and its answer, so it works without script. The conversation so far travels in the form, and nobody's is kept here. The
three are asked at once, each with its own earlier answers.
"""

import importlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qs

from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tunesmith.chat.render import Renderer
from tunesmith.errors import RunError, TunesmithError
from tunesmith.messages import Message
from tunesmith.rundir import RunDir
from tunesmith.web import pages
from tunesmith.web.asking import Model, ModelServer, Said
from tunesmith.web.life import Feed
from tunesmith.web.prompts import ARMS, Question, questions_for

LARGEST = 500_000  # bytes of a form
TURNS = 20  # of a conversation
TOKENS = 4_000  # of a prompt, that are shown


@dataclass(frozen=True, kw_only=True)
class Column:
    """What an arm was asked and said.

    Attributes:
        model: that answered; empty where none did.
        said: its answer; None where there is none, and then ``note`` says why.
        seconds: that it took.
        prompt: the tokens of the prompt as id and text, where they were asked for.
    """

    arm: str
    way: str
    model: str = ""
    said: Said | None = None
    note: str = ""
    seconds: float = 0.0
    prompt: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Turn:
    """A question with what each arm said to it."""

    question: str
    answers: dict[str, str]


class ChatPage:
    """The page, for all runs.

    Args:
        address: of the server of models.
        key: that it asks for.

    Raises:
        RunError: no such address.
    """

    def __init__(self, address: str, key: str | None):
        self._server = ModelServer(address, key)
        self._renderers: dict[str, Renderer] = {}

    async def page(self, feed: Feed, name: str, request: Request) -> Response:
        """The form; after a question with the answers."""
        if request.method != "POST":
            return await run_in_threadpool(self._filled, feed.run, name)
        form = parse_qs((await _body(request)).decode("utf-8", "replace"), keep_blank_values=True)
        question = form.get("question", [""])[0].replace("\r\n", "\n")
        if not question.strip():
            return await run_in_threadpool(self._filled, feed.run, name, _turns(form.get("turns", ["[]"])[0]))
        turns = _turns(form.get("turns", ["[]"])[0])
        return await run_in_threadpool(self._filled, feed.run, name, turns, question, "tokens" in form)

    def _filled(
        self, run: RunDir, name: str, turns: tuple[Turn, ...] = (), question: str = "", with_tokens: bool = False
    ) -> Response:
        columns: list[Column] = []
        problem = ""
        try:
            models = self._server.models()
            tuned = next((model for model in models if model.run == run.path.name), None)
            if tuned is None:
                served = ", ".join(model.name for model in models) or "nothing"
                problem = f"This run is not served there; served: {served}. To serve it: tunesmith serve {run.path}"
            elif question:
                columns = self._asked(run, tuned, turns, question, with_tokens)
        except TunesmithError as error:
            problem = str(error)
        answers = {column.arm: column.said.text for column in columns if column.said is not None}
        now = (*turns, Turn(question, answers)) if answers else turns
        history = json.dumps([{"question": turn.question, "answers": turn.answers} for turn in now])
        return HTMLResponse(
            pages.fill(
                "chat.html.j2",
                name=name,
                server=self._server.address,
                turns=turns,
                question=question,
                columns=columns,
                problem=problem,
                history=history,
                unanswered="" if answers else question,
                arms=ARMS,
                with_tokens=with_tokens,
                is_full=len(now) >= TURNS,
            )
        )

    def _asked(self, run: RunDir, tuned: Model, turns: tuple[Turn, ...], question: str, with_tokens: bool) -> list[Column]:
        """What every arm says, all asked at once."""
        questions = questions_for(run, {arm: _conversation(arm, turns, question) for arm in ARMS})
        renderer = self._renderer(run) if with_tokens else None

        def column(one: Question) -> Column:
            model = tuned.parent if one.asks_base else tuned.name
            if not one.messages:
                return Column(arm=one.arm, way=one.way, note=one.note)
            if model is None:
                note = "the server has no base beside this model: it serves one file with everything in it"
                return Column(arm=one.arm, way=one.way, note=f"{note} (export.lora_gguf)")
            began = time.monotonic()
            try:
                said, note = self._server.ask(model, one.messages, with_tokens), one.note
            except RunError as error:
                said, note = None, str(error)
            seconds = time.monotonic() - began
            prompt = () if renderer is None else _tokens(renderer, one.messages)
            return Column(arm=one.arm, way=one.way, model=model, said=said, note=note, seconds=seconds, prompt=prompt)

        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(column, questions))

    def _renderer(self, run: RunDir) -> Renderer:
        """The renderer of a run; with it comes all that loads models, which nothing else here needs."""
        key = str(run.path)
        if key not in self._renderers:
            self._renderers[key] = importlib.import_module("tunesmith.pipeline.base").base_of(run, run.recipe()).renderer
        return self._renderers[key]


def _conversation(arm: str, turns: tuple[Turn, ...], question: str) -> list[Message]:
    """What an arm is asked: the turns that it has answered, and the question."""
    messages: list[Message] = []
    for turn in (turn for turn in turns if arm in turn.answers):
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answers[arm]})
    return [*messages, {"role": "user", "content": question}]


def _tokens(renderer: Renderer, messages: list[Message]) -> tuple[tuple[int, str], ...]:
    ids = renderer.prompt_ids(messages)
    return tuple((token, str(renderer.tokenizer.decode([token]))) for token in ids[:TOKENS])


def _turns(text: str) -> tuple[Turn, ...]:
    """The conversation that came with a form.

    Raises:
        HTTPException: it is none of ours.
    """
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or len(value) > TURNS:
        raise HTTPException(400, "the conversation that came with the form is none")
    turns: list[Turn] = []
    for entry in value:
        question, answers = (entry.get("question"), entry.get("answers")) if isinstance(entry, dict) else (None, None)
        if not isinstance(question, str) or not isinstance(answers, dict):
            raise HTTPException(400, "the conversation that came with the form is none")
        if not all(isinstance(answer, str) for answer in answers.values()):
            raise HTTPException(400, "the conversation that came with the form is none")
        turns.append(Turn(question, cast("dict[str, str]", answers)))
    return tuple(turns)


async def _body(request: Request) -> bytes:
    """The form.

    Raises:
        HTTPException: it is larger than one that a person fills in.
    """
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > LARGEST:
            raise HTTPException(413, f"more than {LARGEST:,} bytes: begin a new conversation")
    return body
