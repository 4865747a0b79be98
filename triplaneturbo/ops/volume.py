"""Opacity of samples of a signed distance or a density along rays, and front-to-back compositing."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Keeps the NeuS ratio finite far inside the surface, where both sigmoids vanish.
_NEUS_EPSILON = 1e-5
# Largest sharpness at which the VolSDF density is evaluated.
_VOLSDF_MAX_SHARPNESS = 80.0
# Factors of a product nearer to zero than this are divided out as if they were this large.
_MIN_FACTOR = 1e-10


def neus_alpha(
    sdf: Float[Tensor, "*S"],
    cosine: Float[Tensor, "*S"] | float,
    intervals: Float[Tensor, "*S"] | float,
    inv_std: Float[Tensor, ""] | float,
) -> Float[Tensor, "*S"]:
    """Discrete opacity of an SDF sample (NeuS, Wang et al. 2021, eq. 13), in [0, 1].

    The SDF at the two ends of the interval is extrapolated linearly from its centre, f -+ c dt/2, where
    c = -relu(-cosine) is the slope along the ray (`cosine`: ray direction times normal; samples that face away
    have slope 0). With the logistic CDF S(s f), alpha = clip((S(prev) - S(next) + e) / (S(prev) + e), 0, 1).
    Differentiable in all tensor arguments.
    """
    slope = torch.as_tensor(cosine, dtype=sdf.dtype, device=sdf.device).clamp_max(0)
    half_step = slope * intervals / 2
    previous = torch.sigmoid((sdf - half_step) * inv_std)
    following = torch.sigmoid((sdf + half_step) * inv_std)
    return ((previous - following + _NEUS_EPSILON) / (previous + _NEUS_EPSILON)).clamp(0, 1)


def volsdf_density(sdf: Float[Tensor, "*S"], inv_std: Float[Tensor, ""] | float) -> Float[Tensor, "*S"]:
    """Laplace-CDF density s (1/2 + 1/2 sign(f) expm1(-|f| s)) (VolSDF, Yariv et al. 2021), s at most 80."""
    sharpness = torch.as_tensor(inv_std, dtype=sdf.dtype, device=sdf.device).clamp(0, _VOLSDF_MAX_SHARPNESS)
    return sharpness * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * sharpness))


def volsdf_alpha(
    sdf: Float[Tensor, "*S"], intervals: Float[Tensor, "*S"], inv_std: Float[Tensor, ""] | float
) -> Float[Tensor, "*S"]:
    """First-order opacity density * dt of a VolSDF sample, no gradient to `intervals`; may exceed 1."""
    return intervals.detach().abs() * volsdf_density(sdf, inv_std)


def density_alpha(density: Float[Tensor, "*S"], intervals: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Opacity 1 - exp(-density * dt) of a sample that absorbs evenly, no gradient to `intervals`."""
    return -torch.expm1(-density * intervals.detach().abs())


def compositing_weights(alpha: Float[Tensor, "*R S"]) -> tuple[Float[Tensor, "*R S"], Float[Tensor, "*R"]]:
    """Weights w_i = alpha_i prod_{j<i} (1 - alpha_j) along the last axis, and opacity sum_i w_i.

    Differentiable once. A sample with alpha of exactly 1 gets no gradient from what it hides.
    """
    weights = alpha * _ExclusiveProduct.apply(1 - alpha)
    return weights, weights.sum(-1)


class _ExclusiveProduct(torch.autograd.Function):
    """Products of all earlier factors; unlike that of `cumprod`, its backward never waits for the device."""

    @staticmethod
    def forward(ctx, factors):
        products = torch.cat([torch.ones_like(factors[..., :1]), factors[..., :-1]], -1).cumprod(-1)
        ctx.save_for_backward(factors, products)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        factors, products = ctx.saved_tensors
        terms = grad * products
        later = terms.flip(-1).cumsum(-1).flip(-1) - terms
        return later / torch.where(factors.abs() < _MIN_FACTOR, _MIN_FACTOR, factors)
