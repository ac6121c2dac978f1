"""Fixed noise added to each input channel before rounding and subtracted after it.

It stands around another one, on the input of a linear layer.
Paper: NoisyQuant, Liu et al., CVPR 2023, arXiv 2211.16056
"""

from torch import Tensor, nn

from qlib.quantizers.base import Quantizer


class Noisy(Quantizer):
    """x̂ = Q(x + N) − N around any quantizer Q, with an N that was drawn once.

    ``noise``: (channels,) along the last axis; or (c, h, w) for images that a convolution cuts
    into patches of h × w, repeated over the image (in one or three dimensions alike). Hardware
    takes N off in the bias (`denoising_bias`), which is the same: ŵ·(Q(x + N) − N) + b. Here it is
    taken off at once, so that the layer is right also while its weight is in float or its input is
    not rounded.
    """

    title = "nearest under fixed noise"
    fits_alone = False
    mixed = True
    noise: Tensor

    def __init__(self, base: Quantizer, noise: Tensor) -> None:
        super().__init__(base.scale, base.zero_point, base.scheme)
        self.scale, self.base = base.scale, base  # one scale, whoever learns it
        self.register_buffer("noise", noise.detach().clone())

    @property
    def grids(self) -> int:
        return self.noise.numel()

    def forward(self, x: Tensor) -> Tensor:
        noise = self._over(x)
        return self.base(x + noise) - noise

    def nearest(self, x: Tensor) -> Tensor:
        return self.base.nearest(x + self._over(x))

    def values(self, codes: Tensor) -> Tensor:
        return self.base.values(codes) - self._over(codes)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        return self.base.learnable()

    def _over(self, x: Tensor) -> Tensor:
        """The noise as it lies over ``x``: patches side by side, what is left over cut off."""
        if self.noise.dim() == 1:
            return self.noise
        patch = self.noise.shape[1:]
        size = x.shape[-len(patch) :]
        times = [-(-whole // part) for whole, part in zip(size, patch, strict=True)]
        return self.noise.repeat(1, *times)[(slice(None), *map(slice, size))]


def denoising_bias(rounded_weight: Tensor, bias: Tensor | None, noise: Tensor) -> Tensor:
    """b − ŵ·N for a weight (out, …) and noise shaped like the rest of it, or as one vector.

    With the float weight an error (w − ŵ)·N would remain.
    """
    taken = rounded_weight.flatten(1) @ noise.flatten()
    return -taken if bias is None else bias - taken


def sixteen_bits(x: Tensor) -> Tensor:
    """The nearest of 2¹⁶ − 1 even levels that reach as far as ``x`` does; 0 stays 0."""
    step = x.abs().amax() / (2**15 - 1)
    return (x / step).round() * step if float(step) > 0 else x.clone()
