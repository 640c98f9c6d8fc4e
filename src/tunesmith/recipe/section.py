"""What every section of a recipe is, and the texts that its names may have."""

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ENTRY = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SHA256 = r"^[0-9a-f]{64}$"
PATTERNS = {  # in words
    NAME: "at most 64 letters without accents, digits, dots, dashes and underscores, a letter or digit first",
    ENTRY: "letters without accents, digits, dots, dashes and underscores, a letter or digit first",
    SHA256: "64 hexadecimal digits in small letters",
}


class Section(BaseModel):
    """What all sections are: an unknown key is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
