"""What the profile makes of a program and a trace."""

import gzip
import json

import pytest

from benchmarks import step_profile

PROGRAM = """
ENTRY %main (p: f32[2]) -> f32[2] {
  %fusion.3 = f32[2] fusion(%p), kind=kLoop, metadata={op_name="jit(step)/jvp()/mul" id=1}
  ROOT %convolution.1 = f32[2] convolution(%p), metadata={op_name="jit(step)/transpose(jvp())/conv"}
  %copy.2 = f32[2] copy(%p)
}
"""


def test_operations_are_summed_by_kind_and_pass(tmp_path):
  events = [
    {"ph": "X", "name": "fusion.3", "dur": 2e6},
    {"ph": "X", "name": "thunk", "args": {"hlo_op": "convolution.1"}, "dur": 1e6},
    {"ph": "X", "name": "convolution.1", "dur": 3e6},
    {"ph": "X", "name": "python", "dur": 9e6},
    {"ph": "M", "name": "fusion.3"},
  ]
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "host.trace.json.gz").write_bytes(
    gzip.compress(json.dumps({"traceEvents": events}).encode())
  )
  found = step_profile.operations(tmp_path, step_profile.origins(PROGRAM))
  assert found == {
    "backward: conv (convolution)": pytest.approx(4),
    "forward: mul (fusion)": pytest.approx(2),
  }
