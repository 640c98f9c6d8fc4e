"""The fields of a JSON body, each read once by its name and kind; what nobody read is refused.

A request is a promise of what comes back, so a field is honoured or refused by name and none is passed over: whoever writes
``temprature`` learns it at once. The errors have the codes of OpenAI's API, and name the field in ``param``.

``null`` is as good as absent, as it is there. Refused: pydantic models, whose errors name union branches that no client knows
of, and which would need a second pass for what a field means together with another.
"""

import difflib
import math

from pydantic import JsonValue

from tunesmith.serve.api_error import ApiError

_KINDS = {
    "str": "a string",
    "bool": "a boolean",
    "int": "an integer",
    "float": "a number",
    "list": "an array",
    "dict": "an object",
}


def kind_of(value: JsonValue) -> str:
    """What a value of JSON is, in the words of JSON."""
    return "null" if value is None else _KINDS[type(value).__name__]


def wrong_type(param: str, expected: str, found: JsonValue) -> ApiError:
    """A value of another kind than expected."""
    said = f"Invalid type for '{param}': expected {expected}, but got {kind_of(found)} instead."
    return ApiError(400, said, "invalid_type", param)


def wrong_value(param: str, said: str) -> ApiError:
    """A value of the right kind that cannot be."""
    return ApiError(400, f"Invalid value for '{param}': {said}", "invalid_value", param)


def unsupported(param: str, why: str) -> ApiError:
    """A field that OpenAI's API has and this server has not."""
    return ApiError(400, f"Unsupported parameter: '{param}': {why}", "unsupported_parameter", param)


def unsupported_value(param: str, why: str) -> ApiError:
    """A value that OpenAI's API knows and this server does not."""
    return ApiError(400, f"Unsupported value for '{param}': {why}", "unsupported_value", param)


def missing(param: str) -> ApiError:
    """A field that has to be there."""
    return ApiError(400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param)


class Fields:
    """An object of a request, read field by field.

    Args:
        values: the object.
        path: where it stands in the body; empty for the body itself.
    """

    def __init__(self, values: JsonValue, path: str = ""):
        if not isinstance(values, dict):
            raise wrong_type(path or "body", "an object", values)
        self._values = {name: value for name, value in values.items() if value is not None}
        self._path = path
        self._read: set[str] = set()

    def at(self, name: str) -> str:
        """The path of a field, as errors name it."""
        return f"{self._path}.{name}" if self._path else name

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def take(self, name: str) -> JsonValue:
        """A field of any kind; None where it is absent."""
        self._read.add(name)
        return self._values.get(name)

    def needed(self, name: str) -> JsonValue:
        """A field of any kind that has to be there."""
        value = self.take(name)
        if value is None:
            raise missing(self.at(name))
        return value

    def text(self, name: str, longest: int | None = None) -> str | None:
        """A string."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise wrong_type(self.at(name), "a string", value)
        if value is not None and longest is not None and len(value) > longest:
            raise wrong_value(self.at(name), f"at most {longest} characters, found {len(value)}.")
        return value

    def needed_text(self, name: str) -> str:
        """A string that has to be there, and to hold something."""
        self.needed(name)
        value = self.text(name)
        if not value:
            raise wrong_value(self.at(name), "it is empty.")
        return value

    def flag(self, name: str) -> bool | None:
        """True or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(self.at(name), "a boolean", value)
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number between two, both included."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(self.at(name), "a number", value)
        if not (least <= value <= most and math.isfinite(value)):
            raise wrong_value(self.at(name), f"expected a number from {least:g} to {most:g}, found {value!s:.24}.")
        return float(value)

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number between two, both included."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(self.at(name), "an integer", value)
        if not least <= value <= most:
            raise wrong_value(self.at(name), f"expected an integer from {least} to {most}, found {value!s:.24}.")
        return value

    def items(self, name: str) -> list[JsonValue] | None:
        """An array."""
        value = self.take(name)
        if value is not None and not isinstance(value, list):
            raise wrong_type(self.at(name), "an array", value)
        return value

    def inner(self, name: str) -> "Fields | None":
        """An object, to be read in its turn."""
        value = self.take(name)
        return None if value is None else Fields(value, self.at(name))

    def one_of(self, name: str, known: tuple[str, ...]) -> str | None:
        """One of a few strings."""
        value = self.text(name)
        if value is not None and value not in known:
            raise wrong_value(self.at(name), f"expected one of {', '.join(map(repr, known))}, found {value!r:.60}.")
        return value

    def refuse(self, reasons: dict[str, str]) -> None:
        """Refuse the fields of OpenAI's API that this server cannot honour, each for its reason.

        Args:
            reasons: why, by the name of the field.

        Raises:
            ApiError: one of them is there.
        """
        for name, why in reasons.items():
            if name in self._values:
                raise unsupported(self.at(name), why)

    def finish(self) -> None:
        """Refuse what nobody has read.

        Raises:
            ApiError: a field of a name that is not known.
        """
        for name in self._values:
            if name not in self._read:
                near = difflib.get_close_matches(name, self._read, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                param = f"{self.at(name):.80}"
                raise ApiError(400, f"Unknown parameter: '{param}'.{hint}", "unknown_parameter", param)
