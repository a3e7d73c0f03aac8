"""For mkdocs: links that lead out of docs/ become their text, since the site has only docs/.

On a checkout they lead to files of the repository, and tests/docs/test_references.py holds them.
"""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:#]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """mkdocs calls this with the text of each page."""
  folder = posixpath.dirname(page.file.src_uri)

  def text(match: re.Match) -> str:
    target = posixpath.normpath(posixpath.join(folder, match[2]))
    return match[1] if target.startswith("../") else match[0]

  return _LINK.sub(text, markdown)
