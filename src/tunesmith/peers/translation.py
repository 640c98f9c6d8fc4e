"""What becomes of another tool's keys, collected one by one: every key is taken by somebody, or refused as unknown.

A value is read with the type that its tool expects: YAML 1.1 reads ``1e-4`` as a text and ``no`` as false, and the tools
convert.
An empty value (``lora_model_dir:``) is an absent one, as it is there.
"""

import contextlib
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from tunesmith.rundir.records.imported import ImportedKey

OFF = (None, False, 0, "", "none", "None", "no", "false", "off")
LARGEST = 2**53  # whole number that a float holds, and that numbers of a training are multiplied below
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass
class Walk:
    """How the tool walks over its rows, as its keys say it.

    Attributes:
        batch, accumulation: rows (or packs) of a device at a time, and how many of these make a step.
        batch_keys: the names of both.
        packed: tokens of a pack, where rows are packed.
        epochs: how often; ``max_steps`` ends it before or after that.
        warmup: a share of the steps below 1, a number of steps from there on.
        warmup_most: steps that the warm-up has at most.
        held_out: a share of the rows below 1, a number of rows from there on.
        eval_steps: steps from one dev loss to the next (a share of all below 1), where that is said.
        max_length: tokens of the longest row.
        cuts: longer rows are cut there.
    """

    batch: int = 1
    accumulation: int = 1
    batch_keys: str = ""
    packed: int | None = None
    epochs: float = 1.0
    epochs_key: str = ""
    epochs_given: bool = False
    max_steps: int | None = None
    max_steps_key: str = "max_steps"
    warmup: float = 0.0
    warmup_most: int | None = None
    warmup_key: str = ""
    warmup_given: bool = False
    held_out: float = 0.0
    held_out_key: str = ""
    eval_steps: float | None = None
    eval_steps_key: str = "eval_steps"
    max_length: int = 0
    cuts: bool = False


@dataclass(frozen=True, kw_only=True)
class NamedRows:
    """Rows that a configuration names.

    Attributes:
        key: that names them.
        path: file, directory or hub id; a place is looked for from here and from beside the configuration.
        split: of a hub's data set.
        config: of a hub's data set that has several.
        first: so many of the rows are read.
        share: so large a share of them is read.
        format: of the rows, where it is said.
        columns: our names to theirs, where they are said.
    """

    key: str
    path: str
    split: str | None = None
    config: str | None = None
    first: int | None = None
    share: float | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])


class Translation:
    """Keys of a configuration on their way into a recipe.

    Args:
        tool: name of the tool, for people.
        values: its keys.
        without: refused keys that are to be left out.
        computed: keys whose value is an expression that is not evaluated, with its text.
        rows_given: whether other rows are named than those of the configuration.
    """

    def __init__(
        self,
        tool: str,
        values: Mapping[str, JsonValue],
        without: Iterable[str] = (),
        computed: Mapping[str, str] | None = None,
        rows_given: bool = False,
    ):
        self.tool = tool
        self.keys: list[ImportedKey] = []
        self.differs: list[str] = []
        self.walk = Walk()
        self.rows: list[NamedRows] = []
        self.without = frozenset(without)
        self.rows_given = rows_given
        self._values = {key: value for key, value in values.items() if value is not None}
        self._computed = dict(computed or {})
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the file says something of a key, be it an expression."""
        return key in self._values or key in self._computed

    def value(self, key: str) -> JsonValue:
        """The value of a key as it stands there, None for an absent one; the key counts as taken."""
        if key in self._computed and key not in self._taken:
            self._taken.add(key)
            text = self._computed[key]
            self.refuse(key, f"its value is computed ({text:.60}), and nothing is run here", f"--set {key}=VALUE", final=True)
        self._taken.add(key)
        return self._values.get(key)

    def number(self, key: str) -> float | None:
        """The value as a number; another is refused."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):  # a text that is none, or a whole number past all floats
                return float(value)
        self.refuse(key, "expected a number", f"--set {key}=NUMBER", final=True)
        return None

    def whole(self, key: str) -> int | None:
        """The value as a whole number; another is refused."""
        number = self.number(key)
        if number is None or (abs(number) <= LARGEST and number == int(number)):
            return None if number is None else int(number)
        self.refuse(key, "expected a whole number", f"--set {key}=NUMBER", final=True)
        return None

    def flag(self, key: str) -> bool | None:
        """The value as a switch; another is refused."""
        value = self.value(key)
        if value is None or isinstance(value, bool):
            return value
        word = str(value).lower()
        if word in TRUE or word in FALSE:
            return word in TRUE
        self.refuse(key, "expected true or false", f"--set {key}=true", final=True)
        return None

    def text(self, key: str) -> str | None:
        """The value as a text; a list or an object is refused."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value or None
        if isinstance(value, list | dict):
            self.refuse(key, "expected a text", f"--set {key}=TEXT", final=True)
            return None
        return str(value)

    def map(self, key: str, ours: str | None, value: JsonValue, words: str = "") -> None:
        """A key has its place in the recipe; None where it says what every recipe means."""
        self._add(ImportedKey(key=key, value=self._shown(key), kind="mapped", ours=ours, our_value=value, words=words))

    def default(self, key: str, ours: str, value: JsonValue, words: str = "") -> None:
        """An absent key means something there, which the recipe has to say."""
        words = words or f"absent, and its default in {self.tool} is {plain(value)}"
        self._add(ImportedKey(key=key, value=None, kind="defaulted", ours=ours, our_value=value, words=words))

    def carry(self, key: str, ours: str, value: JsonValue, default: JsonValue = None) -> None:
        """A value that means the same here, or the tool's default of it."""
        if value is not None:
            self.map(key, ours, value)
        elif default is not None and not self.is_refused(key):
            self.default(key, ours, default)

    def drop(self, key: str, words: str) -> None:
        """A key is about speed or output alone."""
        self._add(ImportedKey(key=key, value=self._shown(key), kind="dropped", words=words))

    def refuse(self, key: str, words: str, hint: str = "", *, final: bool = False) -> None:
        """A key changes what is trained, and there is no equivalent.

        Args:
            hint: what to type; by default how to leave it out.
            final: it cannot be left out.
        """
        left_out = key in self.without and not final
        hint = hint or ("" if final else f"--without {key} trains without it")
        entry = ImportedKey(
            key=key, value=self._shown(key), kind="refused", words=words, hint=hint, left_out=left_out, final=final
        )
        self._add(entry)

    def refuse_rows(self, key: str, words: str, hint: str = "--data DATA names the rows") -> None:
        """Rows cannot be read as the tool reads them; no matter where others are named."""
        if self.rows_given:
            self.drop(key, "--data names the rows")
        else:
            self.refuse(key, words, hint, final=True)

    def is_refused(self, key: str) -> bool:
        """Whether a key was refused, and not left out."""
        return any(entry.key == key and entry.kind == "refused" and not entry.left_out for entry in self.keys)

    def ours(self, dotted: str) -> JsonValue:
        """What the recipe says under a key so far."""
        return next((entry.our_value for entry in reversed(self.keys) if entry.ours == dotted), None)

    def differ(self, sentence: str) -> None:
        """What is trained otherwise although every key has its place."""
        if sentence not in self.differs:
            self.differs.append(sentence)

    def rest(self, dropped: Mapping[str, str], refused: Mapping[str, str], final: Iterable[str] = ()) -> None:
        """What becomes of the keys that nobody took; those that no table knows are refused by name.

        Args:
            dropped: keys that are about speed or output, with what they do; ``name*`` for all that begin so, ``*name`` for all
                that end so.
            refused: keys that change what is trained, in the same way; a value that switches them off drops them.
            final: of these, those that cannot be left out.
        """
        known = {*dropped, *refused, *self._taken, *(entry.key for entry in self.keys)}
        for key in [*self._values, *self._computed]:
            if key in self._taken:
                continue
            if (words := _found(refused, key)) is not None:
                if key in self._values and is_off(self._values[key]):
                    self.drop(key, "switched off there")
                else:
                    self.refuse(key, words, final=key in final)
            elif (words := _found(dropped, key)) is not None:
                self.drop(key, words)
            elif key in self._values and is_off(self._values[key]):
                self.drop(key, "not known here, and switched off there")
            else:
                near = difflib.get_close_matches(key, [name for name in known if "*" not in name], 1, 0.85)
                guess = f"; did you mean {near[0]}?" if near else ""
                self.refuse(key, f"not known as a key of {self.tool}{guess}")
            self._taken.add(key)

    def _shown(self, key: str) -> JsonValue:
        return self._computed[key] if key in self._computed else self._values.get(key)

    def _add(self, entry: ImportedKey) -> None:
        self._taken.add(entry.key)
        self.keys.append(entry)


def is_off(value: JsonValue) -> bool:
    """Whether a value switches its key off."""
    return value in ([], {}) if isinstance(value, list | dict) else value in OFF


def plain(value: JsonValue) -> str:
    """A value for people, on one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False)


def _found(table: Mapping[str, str], key: str) -> str | None:
    """The words of a table for a key, by its name, its beginning or its end."""
    if key in table:
        return table[key]
    for name, words in table.items():
        if name.endswith("*") and key.startswith(name[:-1]):
            return words
        if name.startswith("*") and key.endswith(name[1:]):
            return words
    return None
