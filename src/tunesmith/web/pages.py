"""The templates of the pages, and how they are filled: other people's text is escaped, and what cannot be seen written out."""

import functools
import json
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from tunesmith import __version__
from tunesmith.formatting import duration, whole_characters
from tunesmith.report.meaning import MEANING
from tunesmith.report.template import environment


@functools.cache
def _environment() -> Environment:
    made = environment("web/templates")
    made.filters["duration"] = duration
    made.filters["part_of_url"] = lambda name: quote(whole_characters(str(name)), safe="")
    made.filters["quoted"] = functools.partial(json.dumps, ensure_ascii=False)
    made.filters["ours"] = Markup  # what this program has filled in already
    made.globals.update(meaning=MEANING, version=__version__)
    return made


def fill(template: str, **values: object) -> str:
    """A template of this folder with its values; one that it names and ``values`` lacks is an error."""
    return whole_characters(_environment().get_template(template).render(**values))
