"""From fields to meshes, and pictures and files of them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_case import Case
from torch import Tensor
from workbench import Workbench, cameras

from families.scene import surroundings
from triplaneturbo.cameras import world_to_clip
from triplaneturbo.exporters.files import write_mesh
from triplaneturbo.materials import NoMaterial
from triplaneturbo.ops.mesh import signed_volume, vertex_normals
from triplaneturbo.ops.rasterize import Raster, interpolate, rasterize
from triplaneturbo.renderers import mesh as mesh_renderer
from triplaneturbo.scenes import FieldScene
from triplaneturbo.scenes.isosurface import extract, extract_meshes
from triplaneturbo.types import Mesh

_EIGHT_BITS = 0.5 / 255
# Pixels: nowhere, then by more than the rasteriser's grid of 1/4096 of a pixel.
_NUDGES = ((0, 0), *((x / 2048, y / 2048) for x in (-1, 1) for y in (-1, 1)))


def mesh_rasterizer(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the recorded meshes from the recorded rasters: no antialiasing, barycentrics without gradient."""
    case.option("grad_scalar", "sum(w*comp_rgb)+sum(w*comp_normal_cam_vis)")
    case.told_by_arrays("batch", "views", "size")
    meta = case.meta
    geometry = workbench.geometry(meta["geometry"])
    renderer = mesh_renderer.MeshRenderer({**meta["renderer"], "compat": "original"}, **surroundings(case)).train()
    planes = case["planes"].clone().requires_grad_()
    scene = FieldScene(geometry.field, {"planes": planes})
    made = _cameras(case, len(planes))
    height, width = case["rays_d_rasterize"].shape[1:3]
    case.close("mvp_mtx", world_to_clip(made, width / height), 1e-5)
    case.close("camera_positions", made.positions, 1e-5)
    meshes, rasters = [], []
    for i, own in enumerate(renderer.surfaces(scene, case.progress)):
        meshes.append(_recorded_mesh(case, i, own))
        rasters.append(_recorded_raster(case, i))
        case.close(f"mesh{i}_v_nrm", vertex_normals(meshes[i].vertices, meshes[i].faces), 1e-5)
        compare_visibility(case, i, meshes[i], rasters[i])
    raster = _joined(rasters, meshes)
    monkeypatch.setattr(mesh_renderer, "rasterize", lambda *meshes_and_size: raster)
    monkeypatch.setattr(mesh_renderer, "antialias", lambda pictures, *others: pictures)
    directions = case["rays_d_rasterize"]
    if not renderer.cfg.enable_bg_rays:
        directions = renderer._background_rays(made, (height, width), None)
    views = renderer.render_meshes(meshes, scene, made, torch.zeros(len(planes), 1), directions)
    for name, picture in {
        "comp_rgb": views.rgb,
        "comp_rgb_bg": renderer.background(directions, directions),
        "comp_normal": views.extras["comp_normal"],
        "comp_normal_cam_vis": views.normal,
        "comp_normal_cam_vis_white": views.normal_white,
        "disparity": views.disparity,
        "opacity": views.opacity,
        "depth": views.depth,
    }.items():
        case.close(name, picture, 1e-4)
    loss = (case["w_comp_rgb"] * views.rgb).sum() + (case["w_comp_normal_cam_vis"] * views.normal).sum()
    loss.backward()
    case.close("grad_planes", planes.grad, 1e-4)


def _cameras(case: Case, n_prompts: int):
    """The field of view is what the projection matrix says: the length of its y row is 1 / tan(fovy / 2)."""
    c2w = case["c2w"]
    fovy = 2 * torch.atan(1 / case["mvp_mtx"][:, 1, :3].norm(dim=-1))
    return cameras(c2w, len(c2w) // n_prompts, fovy=fovy, distance=case["camera_distances"])


def _recorded_mesh(case: Case, i: int, own: Mesh) -> Mesh:
    """Our vertices, differentiable, in the recorded order, with the recorded faces."""
    order = match(case, f"mesh{i}_v", own.vertices, 1e-5)
    compare_faces(case, f"mesh{i}_f", order, own.faces)
    return Mesh(own.vertices[order], case[f"mesh{i}_f"].long())


def _recorded_raster(case: Case, i: int) -> Raster:
    """From (u, v, z/w, triangle + 1) of each pixel."""
    u, v, depth, triangle = case[f"rast{i}"].unbind(-1)
    face_index = triangle.long() - 1
    weights = torch.stack([u, v, 1 - u - v], dim=-1) * (face_index >= 0).unsqueeze(-1)
    return Raster(face_index, weights, depth)


def _joined(rasters: list[Raster], meshes: list[Mesh]) -> Raster:
    """Rasters of several meshes as one, whose faces are numbered through."""
    before, numbered = 0, []
    for raster, mesh in zip(rasters, meshes, strict=True):
        numbered.append(torch.where(raster.face_index >= 0, raster.face_index + before, -1))
        before += len(mesh.faces)
    weights, depth = (torch.cat([getattr(raster, name) for raster in rasters]) for name in ("barycentric", "depth"))
    return Raster(torch.cat(numbered), weights, depth)


def compare_visibility(case: Case, i: int, mesh: Mesh, recorded: Raster) -> None:
    """The project's own rasteriser sees the same triangles at the same places.

    Where a pixel's centre lies on an edge, as exactly as the rasteriser knows, either side of it will do.
    """
    name, (rows, height, width) = f"rast{i}", recorded.face_index.shape
    homogeneous = F.pad(mesh.vertices.detach(), (0, 1), value=1.0)
    clip = torch.einsum("vij,nj->vni", case["mvp_mtx"][i * rows : (i + 1) * rows], homogeneous)
    own, *nudged = (
        rasterize(
            clip + clip[..., 3:] * clip.new_tensor([2 * x / width, 2 * y / height, 0, 0]), mesh.faces, height, width
        )
        for x, y in _NUDGES
    )
    same = own.face_index == recorded.face_index
    either = torch.stack([raster.face_index == recorded.face_index for raster in nudged]).any(0)
    case.within(f"{name}: triangles", float((~same & ~either).float().mean()), 0.0)
    case.within(f"{name}: pixels on edges", float((~same).float().mean()), 0.01)
    places = (interpolate(mesh.vertices.detach(), raster, mesh.faces) for raster in (own, recorded))
    case.within(f"{name}: places", _largest_gap(*places, same), 1e-4)
    case.within(f"{name}: depth", _largest_gap(own.depth, recorded.depth, same), 1e-5)


def _largest_gap(first: Tensor, second: Tensor, where: Tensor) -> float:
    return float((first - second).abs()[where].max())


def match(case: Case, name: str, vertices: Tensor, tolerance: float) -> Tensor:
    """For each recorded vertex the number of ours at its place; every one of ours is taken once."""
    recorded = case[name]
    distance, nearest = torch.cdist(recorded.double(), vertices.detach().double()).min(dim=1)
    case.within(name, float(distance.max() / recorded.abs().max()), tolerance)
    case.require(f"{name}: a permutation", len(nearest.unique()) == len(nearest) == len(vertices))
    return nearest


def compare_faces(case: Case, name: str, order: Tensor, faces: Tensor) -> None:
    """The same triangles, in any order and beginning anywhere. order: see `match`."""
    case.require(f"{name}: the same triangles", _cycles(order[case[name].long()]) == _cycles(faces))


def marching_cubes(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("field", "sqrt(sum(((x-c)/r)^2))-1")
    resolution = case.meta["resolution"]
    centre, radii = (torch.tensor(case.meta[name]) for name in "cr")
    line = torch.linspace(-1, 1, resolution)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
    vertices, faces = extract((((grid - centre) / radii).norm(dim=-1) - 1), None, 1.0)
    for kind in ("diffmc", "mccpu"):
        first = case[f"{kind}_grid0"]
        case.close(f"{kind}_grid0", (grid.flatten(0, 2)[: len(first)] + 1) / 2, 1e-5)
        compare_faces(case, f"{kind}_f", match(case, f"{kind}_v", vertices, 1e-5), faces)
        case.close(f"{kind}_vmin", vertices.amin(0), 1e-5)
        case.close(f"{kind}_vmax", vertices.amax(0), 1e-5)
        case.close(f"{kind}_signed_volume", signed_volume(vertices, faces), 1e-5)


def mesh_export(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    resolution, deforms = case.meta["resolution"], case.meta["use_deformation"]
    geometry = workbench.geometry({**case.meta["geometry"], "isosurface_deformable_grid": deforms})
    scene = FieldScene(geometry.field, {"planes": case["planes"]})
    with torch.no_grad():
        sdf, offset = scene.grid(resolution)
    case.close("grid_sdf", sdf.reshape(len(scene), -1, 1), 1e-5)
    if deforms:
        case.close("grid_deformation", offset.reshape(len(scene), -1, 3), 1e-5)
    material = NoMaterial({"color_activation": "sigmoid-mipnerf"})
    (mesh,) = extract_meshes(scene, material, resolution, ["a recorded case"])
    order = match(case, "v_pos", mesh.vertices, 1e-5)
    case.close("v_rgb", mesh.colors[order], 1e-5)
    compare_faces(case, "faces", order, mesh.faces)
    recorded = Mesh(mesh.vertices[order], case["faces"].long(), mesh.colors[order])
    case.close("v_nrm", vertex_normals(recorded.vertices, recorded.faces), 1e-4)
    _compare_obj(case, recorded, workbench.folder / "recorded.obj")


def _compare_obj(case: Case, mesh: Mesh, path: Path) -> None:
    """The rows of the file, whose vertices may come in another order than the mesh's."""
    write_mesh(path, mesh, normals=False)
    rows = [line.split() for line in path.read_text().splitlines()]
    vertices = torch.tensor([[float(x) for x in row[1:]] for row in rows if row[0] == "v"])
    faces = torch.tensor([[int(x) for x in row[1:]] for row in rows if row[0] == "f"])
    recorded = case["obj_v"]
    distance, nearest = torch.cdist(recorded[:, :3].double(), vertices[:, :3].double()).min(dim=1)
    case.within("obj_v: places", float(distance.max()), 1e-5)
    case.within("obj_v: colours", float((vertices[nearest, 3:] - recorded[:, 3:]).abs().max()), _EIGHT_BITS + 1e-5)
    case.require("obj_v: a permutation", len(nearest.unique()) == len(nearest) == len(vertices))
    case.equal("obj_f", case["obj_f"])
    case.require("obj_f", _cycles(nearest[case["obj_f"].long() - 1]) == _cycles(faces - 1))


def _cycles(faces: Tensor) -> set[tuple[int, ...]]:
    """Triangles without regard to their order and to where each begins."""
    begins = faces.argmin(dim=1, keepdim=True)
    turned = faces.gather(1, (begins + torch.arange(3)) % 3)
    return set(map(tuple, turned.tolist()))
