"""The package's rooms (its sub-packages) and which of them import which.

  python tests/helpers/rooms.py     # prints the graph, as in docs/architecture.md

Imports within functions count: they are imports all the same.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "kd_jax"


def rooms() -> list[str]:
  """Names of the sub-packages of kd_jax, the lowest first: in the order of what they may use."""
  found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  allowed = {room: uses(room) for room in found}
  ordered: list[str] = []
  while len(ordered) < len(found):
    free = sorted(r for r in found if r not in ordered and set(allowed[r]) <= set(ordered))
    if not free:
      raise AssertionError(f"a circle among {sorted(found - set(ordered))}")
    ordered += free
  return ordered


def uses(room: str) -> tuple[str, ...]:
  """The rooms that a room says it may use: USES in its __init__.py."""
  for node in ast.parse((PACKAGE / room / "__init__.py").read_text()).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == "USES":
      return tuple(ast.literal_eval(node.value))
  raise AssertionError(f"kd_jax/{room}/__init__.py names no USES")


def imports(file: Path) -> set[str]:
  """The modules of kd_jax that a file imports, without the package's name; "" for itself."""
  found = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    else:
      continue
    for name in names:
      if name == "kd_jax" or name.startswith("kd_jax."):
        found.add(name.removeprefix("kd_jax").removeprefix("."))
  return found


def arrows() -> dict[str, dict[str, set[str]]]:
  """Room -> room that it imports -> the files that do so."""
  known = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  graph: dict[str, dict[str, set[str]]] = {room: {} for room in known}
  for room in known:
    for file in (PACKAGE / room).rglob("*.py"):
      for module in imports(file):
        other = module.split(".")[0]
        if other in known and other != room:
          graph[room].setdefault(other, set()).add(str(file.relative_to(PACKAGE)))
  return graph


def modules() -> dict[str, set[str]]:
  """Module -> the modules of kd_jax that it imports when it is imported itself (not later)."""
  names = {}
  for file in PACKAGE.rglob("*.py"):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    names[".".join(p for p in parts if p != "__init__")] = file
  graph = {}
  for name, file in names.items():
    body = ast.parse(file.read_text()).body
    at_once = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    found = set()
    for node in at_once:
      if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kd_jax"):
        base = node.module.removeprefix("kd_jax").removeprefix(".")
        for alias in node.names:
          inner = f"{base}.{alias.name}".removeprefix(".")
          found.add(inner if inner in names else base)
    graph[name] = found - {name, ""}
  return graph


def drawing() -> str:
  """The graph in Mermaid's language: an arrow says "imports"; what follows from others is left out.

  An arrow a -> c is left out where a -> b -> c is there: the picture shows the floors.
  """
  graph = {room: set(found) for room, found in arrows().items()}

  def reached(room: str) -> set[str]:
    return graph[room].union(*(reached(other) for other in graph[room]))

  lines = ["graph BT"]
  for room in rooms():
    over = set().union(*(reached(other) for other in graph[room]))
    direct = sorted(graph[room] - over) or []
    lines += [f"  {other} --> {room}" for other in direct]
  return "\n".join(lines)


if __name__ == "__main__":
  for name in rooms():
    print(f"{name:12} imports {', '.join(sorted(arrows()[name])) or 'no other room'}")
  print(f"\n{drawing()}")
