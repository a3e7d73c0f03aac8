"""The Jinja2 environment of the HTML pages: templates/ holds all markup, assets/ goes in as it is.

Everything that a template is given is escaped, unless Python has marked it as Markup. A name that
a template uses but is not given raises jinja2.UndefinedError.
"""

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_ENVIRONMENT = Environment(
  loader=PackageLoader(__package__),
  autoescape=True,
  undefined=StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
  keep_trailing_newline=True,
)


def fill(template: str, **values: object) -> str:
  """A file of templates/ with these values, and asset(name) for those of assets/."""
  return _ENVIRONMENT.get_template(template).render(values, asset=asset)


def asset(name: str) -> Markup:
  """A file of assets/, to stand in a page unescaped."""
  # Safe: styles, scripts and a notice that come with this package; nothing from outside is in them.
  return Markup((files(__package__) / "assets" / name).read_text(encoding="utf-8"))
