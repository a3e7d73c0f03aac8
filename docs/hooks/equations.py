"""For mkdocs: equations become MathML while the site is built, so that no page needs a script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
  """mkdocs calls this with the HTML of each page's text."""

  def mathml(match: re.Match) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match[2]), display=display)

  return _EQUATION.sub(mathml, content)
