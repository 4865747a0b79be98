"""Inverse-CDF placement of sample intervals along rays."""

import torch
from jaxtyping import Float
from torch import Tensor

# A CDF step below this carries no information about where inside its interval a sample belongs.
_FLAT = 1e-10


def importance_sample(
    edges: Float[Tensor, "R E"],
    cdf: Float[Tensor, "R E"],
    n: int,
    jitter: Float[Tensor, "R"] | None = None,
) -> Float[Tensor, "R {n}+1"]:
    """Edges of `n` new intervals of equal probability per ray, ascending and within the given edges.

    The CDF is linear between the given edges. n centres sit at probabilities c_0 + (i + jitter)(c_E - c_0)/n,
    jitter in [0, 1) per ray (None: 1/2); the new edges are halfway between neighbouring centres, the outer two
    half a spacing beyond the outer centres, clamped to the first and last given edge. Needs n >= 2. Not meant
    to be differentiated.
    """
    if n < 2:
        raise ValueError(f"importance_sample needs n >= 2 intervals per ray, got n={n}.")
    start, stop = cdf[:, :1], cdf[:, -1:]
    offset = 0.5 if jitter is None else jitter.unsqueeze(1)
    steps = torch.arange(n, dtype=cdf.dtype, device=cdf.device) + offset
    u = start + steps * ((stop - start) / n)
    upper = torch.searchsorted(cdf.contiguous(), u.contiguous(), right=True).clamp(0, edges.shape[1] - 1)
    lower = (upper - 1).clamp_min(0)
    c0, c1 = cdf.gather(1, lower), cdf.gather(1, upper)
    t0, t1 = edges.gather(1, lower), edges.gather(1, upper)
    flat = c1 - c0 < _FLAT
    fraction = torch.where(flat, 0.5, (u - c0) / torch.where(flat, 1, c1 - c0))
    centres = t0 + fraction * (t1 - t0)
    middles = (centres[:, 1:] + centres[:, :-1]) / 2
    first = torch.maximum(2 * centres[:, :1] - middles[:, :1], edges[:, :1])
    last = torch.minimum(2 * centres[:, -1:] - middles[:, -1:], edges[:, -1:])
    return torch.cat([first, middles, last], 1)
