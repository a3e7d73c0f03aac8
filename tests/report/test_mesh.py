import numpy as np
import pytest

from kd_jax.report import mesh


def volume(vertices, triangles):
  """Signed: positive where the triangles turn counter-clockwise seen from outside."""
  a, b, c = (vertices[triangles[:, n]].astype(float) for n in range(3))
  return float((np.cross(a, b) * c).sum() / 6)


def sides(triangles):
  ends = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
  return sorted(map(tuple, ends.tolist()))


def test_a_ball_has_its_radius_and_volume():
  at = np.indices((30, 32, 28)) - np.array([14, 17, 13]).reshape(3, 1, 1, 1)
  ball = (at**2).sum(axis=0) <= 10.2**2

  vertices, triangles = mesh.surface(ball)

  radius = np.linalg.norm(vertices - [14, 17, 13], axis=1)
  assert np.abs(radius - 10.2).max() < 0.6  # voxels
  assert volume(vertices, triangles) == pytest.approx(ball.sum(), rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_any_surface_is_closed_and_turns_one_way(seed):
  mask = np.random.default_rng(seed).random((7, 6, 5)) < 0.4  # touches every side of the volume

  vertices, triangles = mesh.surface(mask)

  assert sides(triangles) == sides(triangles[:, ::-1])  # each side is met from both directions
  assert triangles.max() < len(vertices)
  assert np.isfinite(vertices).all()
  assert volume(vertices, triangles) > 0


@pytest.mark.parametrize("at", [(0, 0, 0), (4, 2, 1), (5, 4, 3)])
def test_a_lone_voxel_is_there(at):
  mask = np.zeros((6, 5, 4), bool)
  mask[at] = True

  vertices, triangles = mesh.surface(mask)

  np.testing.assert_allclose(vertices.mean(axis=0), at, atol=1e-6)
  assert (np.abs(vertices - at).max(axis=0) >= 0.19).all()
  assert volume(vertices, triangles) > 0


def test_an_empty_mask_has_no_surface():
  vertices, triangles = mesh.surface(np.zeros((3, 4, 5), bool))
  assert vertices.shape == triangles.shape == (0, 3)
