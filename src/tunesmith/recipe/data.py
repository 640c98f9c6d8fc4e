"""Keys of the rows: where they are, how they are read, split and rendered."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

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


class Data(Section):
    """The examples, how they are read, and how they are split."""

    path: str = Field(description="file, directory, or hub id (owner/name, owner/name:split)")
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
    on_too_long: Literal["refuse", "drop", "drop_oldest_turns"] = Field(
        default="refuse",
        description="what happens to a train or dev row above train.max_length; none is ever cut",
    )
    on_leak: Literal["report", "move", "refuse"] = Field(
        default="report", description="what happens to test rows that have a near duplicate in train"
    )
    earlier_split: Path | None = Field(
        default=None, description="data/split.json of an earlier run, whose test rows stay test rows"
    )
    test_fraction: Fraction = Field(default=0.15, description="share of the rows sealed for the verdict")
    dev_fraction: Fraction = Field(default=0.10, description="share of the rows on which everything is chosen")
    documents: Path | None = Field(
        default=None,
        description="a .txt, .md or .jsonl file, or a folder of them, for the retrieval arms to search; the train rows when "
        "not given",
    )


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
