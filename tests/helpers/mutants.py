"""Mutation testing: which changes of a line no test notices (cosmic-ray's operators and ours).

pip install cosmic-ray
python tests/helpers/mutants.py [--most=N] [MODULE ...]    all of MODULES, if none is named

Every mutant runs the module's tests in a fork of this process, which has imported what takes long;
the changed source is imported in place of the file, and no file is touched. Left out are changes
of annotations, of what a `raise` says, of zip's `strict`, and those that change nothing. Of more
than N mutants of a module (default 150), N are drawn, always the same ones.
"""

import argparse
import ast
import atexit
import difflib
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ["JAX_PLATFORMS"] = "cpu"  # read when JAX is imported
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="kd_jax-mutants-")
  atexit.register(shutil.rmtree, CACHE, ignore_errors=True)  # forks end without it
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Imported once, for all forks.
import flax.nnx  # noqa: E402, F401
import hypothesis  # noqa: E402, F401
import jax.numpy  # noqa: E402, F401
import nibabel  # noqa: E402, F401
import optax  # noqa: E402, F401
import pytest  # noqa: E402
import scipy.ndimage  # noqa: E402, F401
from cosmic_ray.ast import ast_nodes, get_ast  # noqa: E402
from cosmic_ray.mutating import mutate_code  # noqa: E402
from cosmic_ray.operators.operator import Operator  # noqa: E402
from cosmic_ray.plugins import get_operator  # noqa: E402
from parso.python.tree import Name  # noqa: E402

# Module -> the quickest tests that should notice, as pytest takes them, most to the point first.
MODULES = {
  "kd_jax.method.losses": ["tests/method/test_losses.py"],
  "kd_jax.method.distillation": ["tests/method/test_distillation.py"],
  "kd_jax.method.objective": ["tests/method/test_objective.py"],
  "kd_jax.method.confidence": ["tests/method/test_confidence.py"],
  "kd_jax.training.step": [
    "tests/training/test_step_numbers.py",
    "tests/training/test_skip_nonfinite.py",
    "tests/training/test_step.py",
    "-k=not mesh and not in_parts and not compiled_again",
  ],
  "kd_jax.training.mesh": ["tests/training/test_device_mesh.py"],
  "kd_jax.prediction.sliding_window": ["tests/prediction/test_sliding_window.py"],
  "kd_jax.prediction.predictor": [
    "tests/prediction/test_predictor.py",
    "tests/prediction/test_postprocess.py",
    "tests/prediction/test_predict.py",
    "tests/prediction/test_student.py",
  ],
  "kd_jax.prediction.postprocess": [
    "tests/prediction/test_postprocess.py",
    "-k=not the_thresholds and not fixed_setting and not student and not ensemble",
  ],
  "kd_jax.tasks.labels": [
    "tests/tasks/test_regions.py",
    "tests/data/test_labels.py",
    "tests/data/test_labels_fuzz.py",
  ],
  "kd_jax.data.nifti": ["tests/data/test_nifti.py", "tests/data/test_nifti_fuzz.py"],
}

# cosmic-ray's, without the pairs that any test would notice.
ARITHMETIC = ["Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul"]
BITS = ["BitAnd_BitOr", "BitOr_BitAnd", "BitXor_BitAnd", "LShift_RShift", "RShift_LShift"]
COMPARED = ["Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"]
OPERATORS = [
  *(f"ReplaceBinaryOperator_{pair}" for pair in ARITHMETIC + BITS),
  *(f"ReplaceComparisonOperator_{pair}" for pair in COMPARED),
  *(f"ReplaceUnaryOperator_Delete_{which}" for which in ("Not", "USub", "Invert")),
  "AddNot",
  "NumberReplacer",
  "ReplaceAndWithOr",
  "ReplaceOrWithAnd",
  "ReplaceTrueWithFalse",
  "ReplaceFalseWithTrue",
  "ReplaceBreakWithContinue",
  "RemoveDecorator",
  "ZeroIterationForLoop",
]
PAIRS = [("maximum", "minimum"), ("max", "min"), ("sum", "mean"), ("any", "all"), ("exp", "log")]
SWAPPED = dict(PAIRS) | {b: a for a, b in PAIRS}


class Rewrite(Operator):
  """An operator of ours, by a function: a node -> what it may become, each a text."""

  def __init__(self, texts):
    self.texts = texts

  def mutation_positions(self, node):
    return [(node.start_pos, node.end_pos)] * len(self.texts(node))

  def mutate(self, node, index):
    return Name(self.texts(node)[index], node.start_pos, node.get_first_leaf().prefix)

  @classmethod
  def examples(cls):
    return ()


def code(node) -> str:
  return node.get_code(include_prefix=False)


def drop_call(node):
  """f(x, y) -> x."""
  if node.type not in ("atom_expr", "power") or node.children[-1].type != "trailer":
    return []
  opening, *inside, _ = node.children[-1].children
  if opening.value != "(" or not inside:
    return []
  first = inside[0].children[0] if inside[0].type == "arglist" else inside[0]
  return [] if first.type == "argument" else [f"({code(first)})"]


def drop_operand(node):
  """a + b -> a, b; so with every operator of two sides, and with a if c else b."""
  parts = [code(child) for child in getattr(node, "children", ())]
  if node.type == "ternary":
    return [f"({parts[0]})", f"({parts[4]})"]
  if node.type not in ("arith_expr", "term", "power", "and_test", "or_test", "expr", "and_expr"):
    return []
  if node.type == "power":  # x.y ** z; the trailers are before the operator
    return [f"({' '.join(parts[:-2])})"] if "**" in parts else []
  rests = [parts[2:], *(parts[: i - 1] + parts[i + 1 :] for i in range(2, len(parts), 2))]
  return [f"({' '.join(rest)})" for rest in rests]


def drop_statement(node):
  """A raise, an update in place or a call for its effect -> pass."""
  alone = getattr(node.parent, "type", "") == "simple_stmt"
  effect = node.type in ("raise_stmt", "atom_expr")
  if node.type == "expr_stmt":
    second = node.children[1]
    plain = node.children[0].type in ("name", "testlist_star_expr") and code(second) == "="
    effect = not plain and second.type != "annassign"
  return ["pass"] if alone and effect else []


def drop_keyword(node):
  """f(x, y=z) -> f(x)."""

  def named(child) -> bool:
    return child.type == "argument" and code(child.children[1]) == "="

  if node.type == "trailer" and code(node.children[0]) == "(" and named(node.children[1]):
    return ["()"]
  if node.type != "arglist":
    return []
  arguments = [child for child in node.children if code(child) != ","]
  return [
    ", ".join(code(other) for other in arguments if other is not child)
    for child in arguments
    if named(child)
  ]


def swap_name(node):
  """max -> min, sum -> mean and so on, as names of functions."""
  return [SWAPPED[node.value]] if node.type == "name" and node.value in SWAPPED else []


OURS = (drop_call, drop_operand, drop_statement, drop_keyword, swap_name)


def meaning(source: str) -> str:
  """The syntax tree without what is left out; "" if there is none."""
  try:
    tree = ast.parse(source)
  except SyntaxError:
    return ""
  for node in ast.walk(tree):
    if isinstance(node, ast.arg):
      node.annotation = None
    elif isinstance(node, ast.FunctionDef):
      node.returns = None
    elif isinstance(node, ast.AnnAssign):
      node.annotation = ast.Constant(0)
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
      node.exc.args, node.exc.keywords = [], []
    elif isinstance(node, ast.Call):
      node.keywords = [k for k in node.keywords if k.arg != "strict"]
  return ast.dump(tree)


def mutants(source: str) -> list[str]:
  """All changed sources, each once."""
  found = {meaning(source): source, "": source}
  theirs = [get_operator(f"core/{name}")() for name in OPERATORS]
  for operator in theirs + [Rewrite(texts) for texts in OURS]:
    count = sum(len(list(operator.mutation_positions(n))) for n in ast_nodes(get_ast(source)))
    for i in range(count):
      changed = mutate_code(source, operator, i)
      found.setdefault(meaning(changed), changed)
  return list(found.values())[2:]


class Instead:
  """A finder that gives one module another source."""

  def __init__(self, module: str, source: str):
    self.module, self.source = module, source

  def find_spec(self, name, path=None, target=None):
    return importlib.util.spec_from_loader(name, self) if name == self.module else None

  def create_module(self, spec):
    return None

  def exec_module(self, module):
    module.__file__ = str(ROOT / (self.module.replace(".", "/") + ".py"))
    exec(compile(self.source, module.__file__, "exec"), module.__dict__)


def outcome(module: str, source: str, seconds: float) -> tuple[int | None, str]:
  """pytest's exit status (None: it took longer than that) and its output."""
  with tempfile.TemporaryFile() as said:
    if not (pid := os.fork()):
      os.setsid()
      for stream in (1, 2):
        os.dup2(said.fileno(), stream)
      sys.meta_path.insert(0, Instead(module, source))
      status = 99
      try:
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *MODULES[module]]))
      finally:
        os._exit(status)
    end, ended = time.monotonic() + seconds, (0, 0)
    while not ended[0] and time.monotonic() < end:
      time.sleep(0.02)
      ended = os.waitpid(pid, os.WNOHANG)
    if not ended[0]:
      os.killpg(pid, signal.SIGKILL)
      os.waitpid(pid, 0)
    said.seek(0)
    output = said.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(ended[1]) if ended[0] else None, output


def changed_lines(before: str, after: str) -> Iterator[str]:
  for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0):
    if not line.startswith(("---", "+++")):
      yield line


def run(module: str, most: int) -> str:
  """Prints the mutants that live; returns a line that counts all."""
  source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
  began = time.monotonic()
  status, output = outcome(module, source, 3600)
  seconds = 60 + 5 * (time.monotonic() - began)  # a mutant that takes longer is noticed, too
  if status:
    sys.exit(f"{module}: its tests fail without a change\n{output}")
  found = mutants(source)
  chosen = found
  if len(found) > most:
    chosen = random.Random(0).sample(found, most)
  lived = late = 0
  for changed in chosen:
    status, _ = outcome(module, changed, seconds)
    late += status is None
    if status == 0:
      lived += 1
      print(module, *changed_lines(source, changed), sep="\n  ", flush=True)
  return (
    f"{module}: {len(chosen)} of {len(found)} mutants, {len(chosen) - lived} noticed "
    f"({late} by time), {lived} lived"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("modules", nargs="*", default=list(MODULES), metavar="MODULE")
  parser.add_argument("--most", type=int, default=150)
  args = parser.parse_args()
  os.chdir(ROOT)
  for module in args.modules:
    print(run(module, args.most), flush=True)


if __name__ == "__main__":
  main()
