"""Keys of the rows: where they are, how they are read, split and rendered."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from tunesmith.formatting import repeated
from tunesmith.recipe.section import Section

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Turns = Literal["refuse", "trim", "merge"]
Format = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "text",
    "dolly",
    "query_response",
    "question_answer",
    "prompt_response",
    "squad",
    "gemini",
    "responses",
    "openai_log",
    "label_studio",
    "argilla",
    "oasst",
]


class RowsOf(Section):
    """One path of several, and how much of it is used."""

    path: str = Field(description="file, directory, or hub id")
    count: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="so many of its rows are taken, by a hash of their content and the seed; all when not given"
    )
    weight: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        default=1.0,
        description="how often each of its train rows is trained on (2.5: twice, and half of them once more, drawn by hash); "
        "dev and test hold a row once whatever its weight",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone(cls, raw: JsonValue) -> JsonValue:
        return {"path": raw} if isinstance(raw, str) else raw


class Data(Section):
    """The examples, how they are read, and how they are split."""

    path: tuple[RowsOf, ...] | str = Field(
        description="file, directory, or hub id (owner/name, owner/name:split); or a list of these, each a path or "
        "{path, count, weight}"
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="at most so many rows are taken, by a hash of their content and the seed; all when not given"
    )
    format: Format | None = Field(default=None, description="format of the rows; told from the whole file when not given")
    encoding: str | None = Field(
        default=None, description="encoding of files of text, for example cp1252; told from the file, and said, when not given"
    )
    delimiter: str | None = Field(
        default=None, description="what stands between the cells of CSV files: one character, or tab; told when not given"
    )
    turns: Turns = Field(
        default="refuse",
        description="what happens to a row whose turns are out of order: it is bad, or loses what stands outside of questions "
        "and answers (trim), or has turns of one speaker joined (merge)",
    )
    columns: dict[str, str] | None = Field(
        default=None, description="our names to the file's columns, for example {prompt: question, completion: answer}"
    )
    group_by: str | None = Field(default=None, description="column whose value holds rows together in the split")
    on_bad_row: Literal["refuse", "quarantine"] = Field(
        default="refuse", description="refuse the data, or keep bad rows aside in data/rejected.jsonl"
    )
    reasoning: Literal["split", "keep", "drop"] | None = Field(
        default=None,
        description="reasoning between tags (<think>) in the text of answers: split puts it into reasoning_content, keep "
        "trains it as text, drop splits it and takes it from the turns of weight 0",
    )
    take: Literal["chosen"] | None = Field(
        default=None, description="chosen reads the good answers of preference data, which are refused else"
    )
    on_too_long: Literal["refuse", "drop", "drop_oldest_turns"] = Field(
        default="refuse",
        description="what happens to a train or dev row above train.max_length; none is ever cut",
    )
    on_leak: Literal["report", "move", "refuse"] = Field(
        default="report",
        description="what happens to test and dev rows that have a near duplicate in train, or stand whole inside a train row",
    )
    split: Literal["given", "drawn"] | None = Field(
        default=None,
        description="given: files, folders or splits of the hub named train, test, validation are the parts, and what is "
        "missing of dev and test is drawn from train; drawn: all rows are put together and parts are drawn. Rows that are "
        "split already need one of the two",
    )
    earlier_split: Path | None = Field(
        default=None, description="data/split.json of an earlier run, whose test rows stay test rows"
    )
    trained_on: Path | None = Field(
        default=None,
        description="rows that the tuned model was trained on, a file or folder that is read as data.path is: they and their "
        "near duplicates are kept out of dev and test",
    )
    test_fraction: Fraction = Field(default=0.15, description="share of the rows sealed for the verdict")
    dev_fraction: Fraction = Field(default=0.10, description="share of the rows on which everything is chosen")
    documents: Path | None = Field(
        default=None,
        description="a .txt, .md or .jsonl file, or a folder of them, for the retrieval arms to search; the train rows when "
        "not given",
    )

    @property
    def paths(self) -> tuple[RowsOf, ...]:
        """Every path, also where only one is named."""
        return (RowsOf(path=self.path),) if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if not self.path:
            raise ValueError("path: nothing is named; give a file, a directory or a hub id")
        if self.split == "given" and self.on_leak == "move":
            raise ValueError(
                "on_leak: move would change the parts that split: given keeps; use report or refuse, or split: drawn"
            )
        if self.split == "given" and self.earlier_split is not None:
            raise ValueError("earlier_split is for parts that are drawn, and split: given keeps the parts that are there")
        return self


class NewToken(Section):
    """A token that the vocabulary gets."""

    text: Annotated[str, Field(min_length=1, max_length=256)] = Field(description="what it is written as")
    special: bool = Field(
        default=True,
        description="true: the template alone writes it, and in a message the same letters are text; false: it is text, "
        "and every message that holds it has this token",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_text_alone(cls, raw: JsonValue) -> JsonValue:
        return {"text": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _no_white_space(self) -> "NewToken":
        if self.text != self.text.strip() or not self.text.isprintable():
            raise ValueError(f"{self.text!r} begins or ends with white space, or holds what cannot be seen")
        return self


class Chat(Section):
    """How conversations become text."""

    template: Path | None = Field(
        default=None,
        description="what takes the place of the model's own chat template: a Jinja file, or the name (without a suffix) of "
        "one that tunesmith brings",
    )
    enable_thinking: bool | None = Field(
        default=None,
        description="switches thinking on or off in a template that has the switch, in training, evaluation and export alike; "
        "the template's own default when not given",
    )
    new_tokens: tuple[NewToken, ...] = Field(
        default=(),
        description="tokens that the vocabulary gets at its end, each a text or {text, special}; their rows of embedding and "
        "head are trained with the adapter, and lie in it, in the merged model and in its GGUF files",
    )

    @model_validator(mode="after")
    def _each_once(self) -> "Chat":
        if twice := repeated(token.text for token in self.new_tokens):
            raise ValueError(f"new_tokens: {twice[0]!r} is named twice")
        return self
