"""References to the documentation lead somewhere: headings cited in the code, links between pages.

The code cites a page as `docs/<page>.md, "<heading>"`, in one place with an equation's number.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kd_jax", "configs", "tests", "benchmarks", "docs")
FEWEST_REFERENCES = 10

# Text may be wrapped after the comma, in a docstring or in a comment.
_REFERENCE = re.compile(
  r'docs/(?P<page>[\w-]+\.md),[\s#]+"(?P<heading>[^"]+)"'
  r"(?:,[\s#]+eq\.\s(?P<first>\d+)(?:\s(?:to|and)\s(?P<last>\d+))?)?"
)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s[^)]*)?\)")


class Reference(NamedTuple):
  """A citation of a heading; equations: the numbers that are cited with it, if any."""

  page: str
  heading: str
  equations: tuple[int, ...]


def references(text: str) -> Iterator[Reference]:
  for match in _REFERENCE.finditer(text):
    heading = re.sub(r"[\s#]*\n[\s#]*", " ", match["heading"])
    first, last = match["first"], match["last"] or match["first"]
    equations = tuple(range(int(first), int(last) + 1)) if first else ()
    yield Reference(match["page"], heading, equations)


def sections(markdown: str) -> dict[str, str]:
  """Heading, as it is written -> the text down to the next heading of any depth."""
  markdown = _FENCE.sub("", markdown)
  found = list(_HEADING.finditer(markdown))
  ends = [match.start() for match in found[1:]] + [len(markdown)]
  return {m[1]: markdown[m.end() : end] for m, end in zip(found, ends, strict=True)}


def anchors(markdown: str) -> set[str]:
  """The anchors that GitHub gives a page's headings."""
  counts: dict[str, int] = {}
  found = set()
  for match in _HEADING.finditer(_FENCE.sub("", markdown)):
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])  # a link shows its text
    slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
    seen = counts.get(slug, 0)
    counts[slug] = seen + 1
    found.add(f"{slug}-{seen}" if seen else slug)
  return found


def problem(reference: Reference, root: Path = ROOT) -> str:
  """What is wrong with a reference; "" if it leads somewhere."""
  page = root / "docs" / reference.page
  if not page.is_file():
    return f"no file docs/{reference.page}"
  text = sections(page.read_text()).get(reference.heading)
  if text is None:
    return f"docs/{reference.page} has no heading {reference.heading!r}"
  missing = [n for n in reference.equations if f"\\qquad ({n})" not in text]
  return f"{reference.heading!r} has no equation {missing}" if missing else ""


def problem_of_link(target: str, page: Path) -> str:
  """What is wrong with a link of a page; "" if it leads somewhere or off the repository."""
  if re.match(r"[a-z][a-z0-9+.-]*:", target):
    return ""
  path, _, anchor = target.partition("#")
  file = (page.parent / path).resolve() if path else page
  if not file.exists():
    return f"no file {path}"
  if anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
    return f"no heading #{anchor} in {file.name}"
  return ""


def texts(*folders: str, suffixes: tuple[str, ...] = (".py", ".md")) -> dict[Path, str]:
  """Every text file under some folders of the repository, but this one."""
  paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
  return {
    path: path.read_text()
    for path in paths
    if path.suffix in suffixes and path.is_file() and path != Path(__file__).resolve()
  }


PAGES = (
  ROOT / "README.md",
  ROOT / "CHANGELOG.md",
  *sorted(ROOT.glob("docs/*.md")),
  ROOT / "benchmarks" / "RESULTS.md",
)


def test_every_cited_heading_exists():
  everything = texts(*FOLDERS) | {ROOT / "README.md": (ROOT / "README.md").read_text()}
  found = [(path, ref) for path, text in everything.items() for ref in references(text)]
  assert len(found) >= FEWEST_REFERENCES
  wrong = [f"{path.relative_to(ROOT)}: {why}" for path, ref in found if (why := problem(ref))]
  assert not wrong, "\n".join(wrong)


def test_no_document_is_cited_that_is_not_here():
  word = re.compile(r"\bMETHOD\b")
  left = [path for path, text in texts("kd_jax", "configs", "tests").items() if word.search(text)]
  assert not left, f"cite docs/method.md by heading instead: {left}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
  text = _FENCE.sub("", page.read_text())
  targets = _LINK.findall(re.sub(r"`[^`\n]*`", "code", text))
  wrong = [f"{target}: {why}" for target in targets if (why := problem_of_link(target, page))]
  assert not wrong, "\n".join(wrong)


def test_wrapped_references_are_found():
  text = '''
    # As in docs/method.md,
    # "Golden cases".
    """Source: docs/method.md, "The
    method", eq. 3 to 5; docs/other-page.md, "A (b)", eq. 2."""
  '''
  assert list(references(text)) == [
    Reference("method.md", "Golden cases", ()),
    Reference("method.md", "The method", (3, 4, 5)),
    Reference("other-page.md", "A (b)", (2,)),
  ]


def test_what_leads_nowhere_is_said(tmp_path):
  (tmp_path / "docs").mkdir()
  page = tmp_path / "docs" / "page.md"
  page.write_text(
    "# Page\n$$ x \\qquad (1) $$\n```\n# no heading\n```\n## Part, `a_b` & c?\n## Part\n"
  )
  assert problem(Reference("page.md", "Page", (1,)), tmp_path) == ""
  assert "no file" in problem(Reference("none.md", "Page", ()), tmp_path)
  assert "no heading" in problem(Reference("page.md", "no heading", ()), tmp_path)
  assert "no equation [1]" in problem(Reference("page.md", "Part", (1,)), tmp_path)
  assert anchors(page.read_text()) == {"page", "part-a_b--c", "part"}
  assert anchors("# A\n# A\n") == {"a", "a-1"}
  for good in ("#part-a_b--c", "page.md#page", "../docs", "https://example.org/x#y"):
    assert problem_of_link(good, page) == ""
  for bad in ("#gone", "page.md#gone", "gone.md", "../docs#page"):
    assert problem_of_link(bad, page)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_what_belongs_to_a_numbered_item_is_indented_by_four(page):
  """As the site's Markdown needs it; with three spaces a list breaks in two, without a word."""
  lines = page.read_text().splitlines()
  numbered = [i for i, line in enumerate(lines) if re.match(r"\d+\. ", line)]
  for i in numbered:
    for line in lines[i + 1 :]:
      if line and not line.startswith(" "):
        break
      assert not re.match(r" {1,3}(```|\d+\. )", line), f"{page.name}: {line}"
