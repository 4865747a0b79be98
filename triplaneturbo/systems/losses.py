"""Regularisers of the rendered views, by the names of the options `lambda_<name>` and `lambda_<name>_2nd`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.bounds import ScheduledWeight
from triplaneturbo.errors import ConfigError
from triplaneturbo.ops.mesh import vertex_normals
from triplaneturbo.ops.rows import add_rows, gather_rows
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Mesh, Views

Scalar = Float[Tensor, ""]


def sparsity(views: Views) -> Scalar:
    """mean sqrt(opacity^2 + 0.01): less matter in the pictures."""
    return (views.opacity.square() + 0.01).sqrt().mean()


def opaque(views: Views) -> Scalar:
    """mean binary entropy of the opacity, clipped to [0.001, 0.999]: pixels become empty or full."""
    opacity = views.opacity.clamp(1e-3, 1 - 1e-3)
    return F.binary_cross_entropy(opacity, opacity)


def z_variance(views: Views) -> Scalar:
    """Variance of the depth along a ray, mean over the rays with opacity above 0.5: thin surfaces."""
    hit = (views.opacity > 0.5).to(views.opacity.dtype)
    return (_extra(views, "z_variance") * hit).sum() / hit.sum().clamp(min=1)


def orient(views: Views) -> Scalar:
    """sum w relu(n . d)^2 / number of rays with opacity > 0: visible normals point against the ray. No gradient
    through the weights w."""
    facing = (_extra(views, "normal") * _extra(views, "t_dirs")).sum(-1, keepdim=True).clamp(min=0)
    return (_extra(views, "weights").detach() * facing.square()).sum() / (views.opacity > 0).sum().clamp(min=1)


def eikonal(views: Views) -> Scalar:
    """mean (|grad sdf| - 1)^2 over the samples; the field becomes a distance."""
    return _mean_over_prompts(lambda grad: (grad.norm(dim=-1) - 1).square().mean(), _extra(views, "sdf_grad"))


def sdf_abs(views: Views) -> Scalar:
    """mean |sdf| over the samples."""
    return _mean_over_prompts(lambda sdf: sdf.abs().mean(), _extra(views, "sdf"))


def normal_smoothness_2d(views: Views) -> Scalar:
    """mean squared difference of the unit world normals of neighbouring pixels, in rows plus in columns."""
    normal = _extra(views, "comp_normal")
    return (normal[:, 1:] - normal[:, :-1]).square().mean() + (normal[:, :, 1:] - normal[:, :, :-1]).square().mean()


def normal_consistency(views: Views) -> Scalar:
    """mean (1 - cosine) of the vertex normals at the two ends of each edge of the mesh."""
    return _mean_over_prompts(_mesh_normal_consistency, _extra(views, "meshes"))


def laplacian_smoothness(views: Views) -> Scalar:
    """mean distance of a vertex from the mean of its neighbours (uniform Laplacian)."""
    return _mean_over_prompts(_mesh_laplacian, _extra(views, "meshes"))


REGULARISERS: dict[str, Callable[[Views], Scalar]] = {
    term.__name__: term
    for term in (
        sparsity,
        opaque,
        z_variance,
        orient,
        eikonal,
        sdf_abs,
        normal_smoothness_2d,
        normal_consistency,
        laplacian_smoothness,
    )
}


@dataclass(kw_only=True)
class LossConfig:
    """Weights of the loss terms; each may be a schedule. The suffix _2nd is for the second renderer."""

    weighting_strategy: Literal["v1"] = "v1"
    """v1: each of the K parts of a step weighs 1 / K. There is no other."""
    lambda_asd: ScheduledWeight = 1.0
    """Weight of the teachers' score gradient."""
    lambda_asd_2nd: ScheduledWeight = 1.0
    lambda_sparsity: ScheduledWeight = 0.0
    lambda_sparsity_2nd: ScheduledWeight = 0.0
    lambda_opaque: ScheduledWeight = 0.0
    lambda_opaque_2nd: ScheduledWeight = 0.0
    lambda_z_variance: ScheduledWeight = 0.0
    lambda_z_variance_2nd: ScheduledWeight = 0.0
    lambda_orient: ScheduledWeight = 0.0
    lambda_orient_2nd: ScheduledWeight = 0.0
    lambda_eikonal: ScheduledWeight = 0.0
    lambda_eikonal_2nd: ScheduledWeight = 0.0
    lambda_sdf_abs: ScheduledWeight = 0.0
    lambda_sdf_abs_2nd: ScheduledWeight = 0.0
    lambda_normal_smoothness_2d: ScheduledWeight = 0.0
    lambda_normal_smoothness_2d_2nd: ScheduledWeight = 0.0
    lambda_normal_consistency: ScheduledWeight = 0.0
    lambda_normal_consistency_2nd: ScheduledWeight = 0.0
    lambda_laplacian_smoothness: ScheduledWeight = 0.0
    lambda_laplacian_smoothness_2nd: ScheduledWeight = 0.0

    def weight(self, term: str, slot: str, progress: Progress) -> float:
        """Weight of `term` for the renderer of `slot`: "" or "_2nd"."""
        return getattr(self, f"lambda_{term}{slot}")(progress)


def regularisation(views: Views, config: LossConfig, slot: str, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms whose weight is not zero at `progress`, and their unweighted values, detached.

    slot: "" for the first renderer, "_2nd" for the second.
    """
    total = views.opacity.new_zeros(())
    values = {}
    for name, term in REGULARISERS.items():
        weight = config.weight(name, slot, progress)
        if weight:
            value = term(views)
            total = total + weight * value
            values[f"loss_{name}{slot}"] = value.detach()
    return total, values


def _extra(views: Views, name: str) -> Any:
    if name not in views.extras:
        raise ConfigError(
            f"a regulariser needs {name!r}, which this renderer does not give (it gives: "
            f"{', '.join(sorted(views.extras)) or 'nothing'}); set its lambda to 0"
        )
    return views.extras[name]


def _mean_over_prompts(term: Callable[[Any], Tensor], values: Any) -> Tensor:
    """`term` of a tensor, or its mean over a list with one entry a prompt."""
    if isinstance(values, (list, tuple)):
        return torch.stack([term(value) for value in values]).mean()
    return term(values)


def _edges(mesh: Mesh) -> Tensor:
    """Undirected edges E x 2, each once."""
    pairs = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    return torch.unique(pairs.sort(dim=1).values, dim=0)


def _mesh_normal_consistency(mesh: Mesh) -> Tensor:
    edges = _edges(mesh)
    ends = gather_rows(vertex_normals(mesh.vertices, mesh.faces), edges.flatten()).view(-1, 2, 3)
    return (1 - F.cosine_similarity(ends[:, 0], ends[:, 1], dim=-1)).mean()


def _mesh_laplacian(mesh: Mesh) -> Tensor:
    edges = _edges(mesh)
    both = torch.cat([edges, edges.flip(1)])
    count = torch.zeros_like(mesh.vertices[:, :1]).index_add(0, both[:, 0], mesh.vertices.new_ones(len(both), 1))
    summed = add_rows(torch.zeros_like(mesh.vertices), both[:, 0], gather_rows(mesh.vertices, both[:, 1]))
    return (summed / count.clamp(min=1) - mesh.vertices).norm(dim=1).mean()
