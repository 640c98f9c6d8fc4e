"""Fill a page: one self-contained file that shows other people's text.

What stands in a page was written by data sets and models, so it is treated as hostile: markup is escaped, characters
that cannot be seen (control characters, marks that reverse the direction of writing, tag characters that spell hidden
words) are shown as escapes, and the page forbids itself scripts and the network. The alternative, trusting each
template to filter each value, fails at the first value that somebody forgets; here a value must be marked safe to
escape the treatment, and only our own SVG is.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tunesmith.formatting import percent, points, points_between
from tunesmith.tracking import visible


def _visible(value: Any) -> Any:
    """Text with unseen characters written as escapes; any other value, and markup of our own, as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def render(template: str, **values: Any) -> str:
    """The page of a template of this folder. A value that the template names and ``values`` lacks is an error."""
    return environment("report").get_template(template).render(**values)


def environment(folder: str) -> Environment:
    """What fills the templates of a folder of the package, so that other people's text does no harm."""
    made = Environment(
        loader=PackageLoader("tunesmith", folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["points"] = points
    made.filters["percent"] = percent
    made.globals["points_between"] = points_between
    made.filters["grouped"] = lambda value: f"{value:,}"
    return made
