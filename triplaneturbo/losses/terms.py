"""Terms of the loss besides the teachers' gradient: regularisers of what the renderers show."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from triplaneturbo.errors import ConfigError
from triplaneturbo.losses.base import LossTerm, Scalar
from triplaneturbo.ops.mesh import vertex_normals
from triplaneturbo.ops.rows import add_rows, gather_rows
from triplaneturbo.registry import register
from triplaneturbo.types import Extra, Mesh, Views


@register("sparsity")
class Sparsity(LossTerm):
    """mean sqrt(opacity^2 + 0.01): less matter in the pictures."""

    def __call__(self, views: Views) -> Scalar:
        return (views.opacity.square() + 0.01).sqrt().mean()


@register("opaque")
class Opaque(LossTerm):
    """mean binary entropy of the opacity, clipped to [0.001, 0.999]: pixels become empty or full."""

    def __call__(self, views: Views) -> Scalar:
        opacity = views.opacity.clamp(1e-3, 1 - 1e-3)
        return F.binary_cross_entropy(opacity, opacity)


@register("z_variance")
class ZVariance(LossTerm):
    """Variance of the depth along a ray, mean over the rays with opacity above 0.5: thin surfaces."""

    def __call__(self, views: Views) -> Scalar:
        hit = (views.opacity > 0.5).to(views.opacity.dtype)
        return (_extra(views, "z_variance") * hit).sum() / hit.sum().clamp(min=1)


@register("orient")
class Orient(LossTerm):
    """sum w relu(n . d)^2 / number of rays with opacity > 0: visible normals point against the ray. No gradient
    through the weights w."""

    def __call__(self, views: Views) -> Scalar:
        facing = (_extra(views, "normal") * _extra(views, "t_dirs")).sum(-1, keepdim=True).clamp(min=0)
        return (_extra(views, "weights").detach() * facing.square()).sum() / (views.opacity > 0).sum().clamp(min=1)


@register("eikonal")
class Eikonal(LossTerm):
    """mean (|grad sdf| - 1)^2 over the samples; the field becomes a distance."""

    def __call__(self, views: Views) -> Scalar:
        return _mean_over_prompts(lambda grad: (grad.norm(dim=-1) - 1).square().mean(), _extra(views, "sdf_grad"))


@register("sdf_abs")
class SdfAbs(LossTerm):
    """mean |sdf| over the samples."""

    def __call__(self, views: Views) -> Scalar:
        return _mean_over_prompts(lambda sdf: sdf.abs().mean(), _extra(views, "sdf"))


@register("normal_smoothness_2d")
class NormalSmoothness2d(LossTerm):
    """mean squared difference of the unit world normals of neighbouring pixels, in rows plus in columns."""

    def __call__(self, views: Views) -> Scalar:
        normal = _extra(views, "comp_normal")
        return (normal[:, 1:] - normal[:, :-1]).square().mean() + (normal[:, :, 1:] - normal[:, :, :-1]).square().mean()


@register("normal_consistency")
class NormalConsistency(LossTerm):
    """mean (1 - cosine) of the vertex normals at the two ends of each edge of the mesh."""

    def __call__(self, views: Views) -> Scalar:
        return _mean_over_prompts(_mesh_normal_consistency, _extra(views, "meshes"))


@register("laplacian_smoothness")
class LaplacianSmoothness(LossTerm):
    """mean distance of a vertex from the mean of its neighbours (uniform Laplacian)."""

    def __call__(self, views: Views) -> Scalar:
        return _mean_over_prompts(_mesh_laplacian, _extra(views, "meshes"))


def _extra(views: Views, name: str) -> Extra:
    if name not in views.extras:
        raise ConfigError(
            f"a loss term needs {name!r}, which this renderer does not give (it gives: "
            f"{', '.join(sorted(views.extras)) or 'nothing'}); take it away: losses.RENDERER.TERM=null"
        )
    return views.extras[name]


def _mean_over_prompts(term: Callable[[Extra], Tensor], values: Extra | list[Extra]) -> Tensor:
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
