"""All convolutions of a network in one form, to compare forms by whole steps."""

import dataclasses

from kd_jax.models import conv_choice, conv_forms
from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import Convolution, Convolutions

NAMES = ("auto", "native", "native_2", "depth_taps", "depth_stack", "depth_stack_2")
_WIDE = 128  # channels, from which one slice of output at a time fills a tile


@dataclasses.dataclass(frozen=True)
class InOneForm(Convolutions):
  """Every convolution in `form` where that can be: its gradients too, with little kept for them.

  Forms of two slices at once are for few channels; many take the form of one.
  """

  form: str = "native"

  def choose(self, convolution: Convolution) -> Forms:
    to_input = self._one(convolution, convolution.channels)
    if not conv_forms.possible(to_input, "to_input", convolution.window, convolution.stride):
      to_input = f"transposed_{to_input}"
    both = self._one(convolution, convolution.features)
    return Forms(both, to_input, both, apart=self.platform == "gpu")

  def _one(self, convolution: Convolution, outputs: int) -> str:
    return self.form.removesuffix("_2") if outputs >= _WIDE else self.form


def convolutions(form: str, platform: str) -> Convolutions:
  """Of NAMES; "auto" is what a program takes by itself on that platform."""
  if form == "auto":
    return conv_choice.of_platform(platform)
  return InOneForm(platform, form=form)
