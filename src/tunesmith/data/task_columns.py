"""Tables of a text and what it is, which read as plain texts that nobody asks for.

A column named ``text`` makes a row a plain text, and everything of it is trained. Beside a column of labels that is a
classification: the text is asked and the label is the answer, and training the texts teaches a model to write the inputs.
Beside a column of speakers it is a turn of a conversation, and what users say is trained. Names of columns are the only sign,
so this proposes (``--column prompt=text --column completion=label``) and never reads a table otherwise than it says.
"""

from tunesmith.data.finding import Finding
from tunesmith.rundir.records.check import Reading

# What columns of answers are called in published tables, the surest first.
LABELS = (
    *("label", "labels", "label_text", "label_name", "class", "category", "intent", "sentiment", "target", "choice", "kind"),
    *("answer", "answers", "output", "response", "completion", "reply", "topic", "tag", "emotion", "stars", "rating"),
)
SPEAKERS = ("role", "from", "speaker", "author")


def label_column(reading: Reading) -> str | None:
    """The column that answers the texts of a source read as plain texts; None where there is none."""
    if reading.format != "text":
        return None
    beside = {name.lower(): name for name in reading.ignored_columns}
    return next((beside[name] for name in LABELS if name in beside), None)


def columns_hint(reading: Reading) -> str:
    """How to read a table of plain texts as what is asked and what is answered."""
    label = label_column(reading)
    if label is None and not reading.ignored_columns:
        return "bring rows that ask: prompt and completion, or messages"
    named = f"--column prompt=text --column completion={label or 'LABEL'}"
    recipe = f"data.columns: {{prompt: text, completion: {label or 'LABEL'}}}"
    if label is not None:
        return f"the text is asked and {label} is the answer: {named} (in a recipe {recipe})"
    others = ", ".join(list(reading.ignored_columns)[:10])
    return f"name the column of the answers, one of {others}: {named} (in a recipe {recipe})"


def task_finding(reading: Reading) -> list[Finding]:
    """That a part of the question is not read, or that plain texts stand beside a column of labels or of speakers."""
    if reading.left_out:
        names = ", ".join(f"{name} ({rows:,} rows)" for name, rows in reading.left_out.items())
        text = f"rows beside columns of the question or its answer that nothing reads, {names}: a part of it is trained alone"
        hint = f"To read it, {reading.left_out_named}. Where it is not meant, name the columns without it, or remove it."
        return [Finding("part-left-out", "wrong", text, max(reading.left_out.values()), reading.rows, hint)]
    label = label_column(reading)
    speaker = next((name for name in SPEAKERS if name in reading.ignored_columns), None)
    if reading.format == "text" and speaker is not None:
        rows = reading.ignored_columns[speaker].rows
        text = f"plain texts beside a column {speaker} that nothing reads: what users say is trained, and nobody asks"
        hint = "Write each conversation as one row: messages with role and content, in their order."
        return [Finding("text-and-speaker", "wrong", text, rows, reading.rows, hint)]
    if label is None:
        return []
    rows = reading.ignored_columns[label].rows
    text = f"plain texts beside a column {label} that nothing reads: the texts are trained, and nobody asks for them"
    return [Finding("text-and-label", "wrong", text, rows, reading.rows, f"If {columns_hint(reading)}.")]
