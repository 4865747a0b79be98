"""Packages that operations can be handed to: real ones where they import, else stand-ins with the same signatures.

A stand-in does on the CPU, by our own operations, what the documentation of the package says, and refuses what the
package refuses: other types, strides, and places of tensors.
"""

import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from triplaneturbo.ops import backends
from triplaneturbo.ops.hashgrid import HashGrid
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.ops.rasterize import Raster
from triplaneturbo.ops.rasterize import antialias as our_antialias
from triplaneturbo.ops.rasterize import rasterize as our_rasterize


class DiffMC(nn.Module):
    """diso.DiffMC; vertices in another order than ours, and nothing for a grid that is all inside."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype

    def forward(self, grid, deform=None, isovalue=0.0, normalize=True):
        assert grid.dim() == 3
        assert grid.dtype == self.dtype
        assert grid.is_contiguous()
        assert deform is None or (deform.shape == (*grid.shape, 3) and deform.is_contiguous())
        if grid.min() >= isovalue or grid.max() <= isovalue:
            return grid.new_zeros(0, 3), grid.new_zeros(0, 3, dtype=torch.int32)
        vertices, faces = marching_cubes(grid, deform, level=isovalue, backend="torch")
        if normalize:
            vertices = vertices / (vertices.new_tensor(grid.shape) - 1)
        return vertices.flip(0), len(vertices) - 1 - faces


class Encoding(nn.Module):
    """tinycudann.Encoding for 3 coordinates and a hash grid; the parameters are its own to begin with."""

    def __init__(self, n_input_dims, encoding_config, seed=1337, dtype=None):
        super().__init__()
        config = dict(encoding_config)
        assert n_input_dims == 3
        assert config.pop("otype") == "HashGrid"
        assert dtype is torch.float32
        self.__dict__["grid"] = HashGrid(**config)
        self.params = nn.Parameter(self.grid.params.detach().clone())
        self.n_output_dims = self.grid.n_output_dims

    def forward(self, x):
        assert x.dtype == torch.float32
        own = torch.func.functional_call(self.grid, {"params": self.params}, (x,), {"backend": "torch"})
        return own[: len(x), : self.n_output_dims]


class RasterizeCudaContext:
    def __init__(self, device=None):
        self.device = device


_ranges: dict[tuple, torch.Tensor] = {}  # of range mode, by the shape of the picture: antialias is not told


def rasterize(glctx, pos, tri, resolution, ranges=None, grad_db=True):
    """nvdiffrast.torch.rasterize: pictures (u, v, z/w, face + 1), in which u and v alone have a gradient."""
    assert isinstance(glctx, RasterizeCudaContext)
    assert pos.dtype == torch.float32
    assert tri.dtype == torch.int32
    assert pos.is_contiguous()
    assert tri.is_contiguous()
    assert len(tri) > 0
    if pos.dim() == 3:
        rasters = [(our_rasterize(pos, tri.long(), *resolution, backend="torch"), 0)]
    else:
        assert ranges.dtype == torch.int32
        assert ranges.device.type == "cpu"
        assert ranges.is_contiguous()
        parts = [(tri[first : first + number].long(), first) for first, number in ranges.tolist()]
        rasters = [(our_rasterize(pos[None], part, *resolution, backend="torch"), first) for part, first in parts]
    pictures = [_picture(raster, first) for raster, first in rasters]
    if ranges is not None:
        _ranges[len(ranges), *resolution] = ranges
    return torch.cat(pictures), torch.cat(pictures).detach() * 0


def _picture(raster, first):
    identifier = torch.where(raster.face_index >= 0, raster.face_index + first + 1, 0).float()
    return torch.stack([*raster.barycentric.unbind(-1)[:2], raster.depth.detach(), identifier], -1)


def interpolate(attr, rast, tri, rast_db=None, diff_attrs=None):
    """nvdiffrast.torch.interpolate, without differentials."""
    assert attr.dtype == rast.dtype == torch.float32
    assert tri.dtype == torch.int32
    assert attr.is_contiguous()
    assert rast.is_contiguous()
    face = rast[..., 3].long() - 1
    corners = tri.long()[face.clamp_min(0)]
    if attr.dim() == 3:
        picture = torch.arange(len(rast)).view(-1, 1, 1, 1)
        values = attr.expand(len(rast), -1, -1)[picture, corners]
    else:
        values = attr[corners]
    u, v = rast[..., 0], rast[..., 1]
    weights = torch.stack([u, v, 1 - u - v], -1) * (face >= 0).unsqueeze(-1)
    return (weights.unsqueeze(-1) * values).sum(-2), rast.new_zeros(*rast.shape[:3], 0)


def antialias(color, rast, pos, tri, topology_hash=None, pos_gradient_boost=1.0):
    """nvdiffrast.torch.antialias, by our rule for silhouettes."""
    assert color.dtype == rast.dtype == pos.dtype == torch.float32
    assert color.is_contiguous()
    assert rast.is_contiguous()
    face, tri = rast[..., 3].long() - 1, tri.long()
    raster = Raster(face, torch.zeros(*face.shape, 3), rast[..., 2])
    if pos.dim() == 3:
        return our_antialias(color, raster, pos, tri)
    pictures = []
    for number, (first, count) in enumerate(_ranges[len(rast), *rast.shape[1:3]].tolist()):
        one = Raster(*(field[number : number + 1] for field in (face, raster.barycentric, raster.depth)))
        one.face_index = torch.where(one.face_index >= 0, one.face_index - first, -1)
        pictures.append(our_antialias(color[number : number + 1], one, pos[None], tri[first : first + count]))
    return torch.cat(pictures)


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    """xformers.ops.memory_efficient_attention of [B, M, H, K], or [B, M, K] with one head."""
    assert p == 0
    if query.dim() == 3:
        return F.scaled_dot_product_attention(query, key, value, attn_bias, scale=scale)
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, attn_bias, scale=scale).transpose(1, 2)


STAND_INS = {
    "diso": {"diso": {"DiffMC": DiffMC}},
    "tinycudann": {"tinycudann": {"Encoding": Encoding}},
    "nvdiffrast": {
        "nvdiffrast": {},
        "nvdiffrast.torch": {
            "RasterizeCudaContext": RasterizeCudaContext,
            "rasterize": rasterize,
            "interpolate": interpolate,
            "antialias": antialias,
        },
    },
    "xformers": {"xformers": {}, "xformers.ops": {"memory_efficient_attention": memory_efficient_attention}},
}


def _forget() -> None:
    """What was found out about packages, and what of them is kept."""
    from triplaneturbo.ops import hashgrid_tinycudann, marching_cubes_diso, rasterize_nvdiffrast

    backends.loading_problem.cache_clear()
    for kept in (hashgrid_tinycudann._encoding, marching_cubes_diso._extractor, rasterize_nvdiffrast._context):
        kept.cache_clear()


@contextmanager
def stand_in(package):
    """The stand-in of a package is what its name imports; it runs on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name, members in STAND_INS[package].items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            module.__dict__.update(members)
            patch.setitem(sys.modules, name, module)
            above, _, last = name.rpartition(".")
            if above:
                setattr(sys.modules[above], last, module)
        elsewhere = backends.runs_on
        patch.setattr(backends, "runs_on", lambda name, device: name == package or elsewhere(name, device))
        _forget()
        try:
            yield
        finally:
            _forget()


def implementations(package):
    """pytest parameters: the stand-in, and the package itself where it imports and there is a GPU."""
    problem = backends.loading_problem(package) if torch.cuda.is_available() else "there is no CUDA device"
    real = pytest.param("cuda", marks=pytest.mark.skipif(bool(problem), reason=problem), id=package)
    return [pytest.param("cpu", id=f"stand-in for {package}"), real]


@contextmanager
def provided(package, device):
    """The stand-in on the CPU, the package on a GPU."""
    if device == "cuda":
        yield
        return
    with stand_in(package):
        yield
