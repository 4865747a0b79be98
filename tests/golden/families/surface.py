"""From fields to meshes, and pictures and files of them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_case import Case
from torch import Tensor
from workbench import Workbench, cameras, translated

from families.scene import surroundings
from triplaneturbo.cameras import world_to_clip
from triplaneturbo.exporters.files import write_mesh
from triplaneturbo.materials import Unlit
from triplaneturbo.ops.mesh import signed_volume, vertex_normals
from triplaneturbo.ops.rasterize import Raster, interpolate, rasterize
from triplaneturbo.renderers import mesh as mesh_renderer
from triplaneturbo.scenes import FieldScene
from triplaneturbo.scenes.isosurface import extract, extract_meshes
from triplaneturbo.types import Mesh

_EIGHT_BITS = 0.5 / 255
# Share of pixels whose centre may lie on an edge.
_ON_EDGES = 0.01
# Pixels: nowhere, then by more than the rasteriser's grid of 1/4096 of a pixel.
_NUDGES = ((0, 0), *((x / 2048, y / 2048) for x in (-1, 1) for y in (-1, 1)))


def mesh_rasterizer(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the recorded meshes from the recorded rasters: no antialiasing, barycentrics without gradient.

    Where a case does not carry them they are the project's own, whose pixels on edges may see another triangle.
    """
    case.option("grad_scalar", "sum(w*comp_rgb)+sum(w*comp_normal_cam_vis)")
    case.told_by_arrays("batch", "views", "size")
    meta = case.meta
    geometry = workbench.geometry(meta["geometry"])
    published = {"renderer_type": "generative-space-mesh-rasterize-renderer", "renderer": meta["renderer"]}
    options = translated(published | {"loss": {"lambda_normal_smoothness_2d": 1.0}})["system"]["renderers"]["mesh"]
    del options["type"]
    renderer = mesh_renderer.MeshRenderer(options, **surroundings(case)).train()
    planes = case["planes"].clone().requires_grad_()
    scene = FieldScene(geometry.field, {"planes": planes})
    made = _cameras(case, len(planes))
    height, width = case["rays_d_rasterize"].shape[1:3]
    case.close("mvp_mtx", world_to_clip(made, width / height), 1e-5)
    case.close("camera_positions", made.positions, 1e-5)
    meshes = renderer.surfaces(scene, case.progress)
    orders = [_compare_mesh(case, i, own) for i, own in enumerate(meshes)]
    complete = all(f"mesh{i}_{part}" in case and f"rast{i}" in case for i in range(len(meshes)) for part in "vf")
    if complete:
        meshes = [
            Mesh(own.vertices[order], case[f"mesh{i}_f"].long())
            for i, (own, order) in enumerate(zip(meshes, orders, strict=True))
        ]
        rasters = [_recorded_raster(case, i) for i in range(len(meshes))]
        for i, (mesh, recorded) in enumerate(zip(meshes, rasters, strict=True)):
            compare_visibility(case, i, mesh, recorded)
        raster = _joined(rasters, meshes)
    else:
        raster = _own_raster(case, meshes, height, width)
    monkeypatch.setattr(mesh_renderer, "rasterize", lambda *meshes_and_size: raster)
    monkeypatch.setattr(mesh_renderer, "antialias", lambda pictures, *others: pictures)
    directions = case["rays_d_rasterize"]
    if not renderer.cfg.enable_bg_rays:
        directions = renderer._background_rays(made, (height, width))
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
        case.close(name, picture, 1e-4, outliers=0.0 if complete else _ON_EDGES)
    weighted = {"comp_rgb": views.rgb, "comp_normal_cam_vis": views.normal}
    terms = [(case[f"w_{name}"] * picture).sum() for name, picture in weighted.items() if f"w_{name}" in case]
    if terms:
        sum(terms).backward()
        case.close("grad_planes", planes.grad, 1e-4)


def _cameras(case: Case, n_prompts: int):
    """The field of view is what the projection matrix says: the length of its y row is 1 / tan(fovy / 2)."""
    c2w = case["c2w"]
    fovy = 2 * torch.atan(1 / case["mvp_mtx"][:, 1, :3].norm(dim=-1))
    return cameras(c2w, len(c2w) // n_prompts, fovy=fovy, distance=case["camera_distances"])


def _compare_mesh(case: Case, i: int, own: Mesh) -> Tensor | None:
    """Returns the recorded order of our vertices, see `match`."""
    order = match(case, f"mesh{i}_v", own.vertices, 1e-5)
    compare_faces(case, f"mesh{i}_f", order, own.faces)
    close_rows(case, f"mesh{i}_v_nrm", vertex_normals(own.vertices, own.faces), order, 1e-5)
    return order


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


def _own_raster(case: Case, meshes: list[Mesh], height: int, width: int) -> Raster:
    """Ours, without gradient. Of a recorded raster without its mesh what is covered can be compared."""
    rasters = []
    for i, (mesh, mvp) in enumerate(zip(meshes, case["mvp_mtx"].chunk(len(meshes)), strict=True)):
        raster = rasterize(_to_clip(mesh, mvp), mesh.faces, height, width)
        rasters.append(Raster(raster.face_index, raster.barycentric.detach(), raster.depth.detach()))
        if f"rast{i}" in case:
            differ = (case[f"rast{i}"][..., 3] > 0) != (raster.face_index >= 0)
            case.within(f"rast{i}: covered", float(differ.float().mean()), _ON_EDGES)
    return _joined(rasters, meshes)


def _to_clip(mesh: Mesh, mvp: Tensor) -> Tensor:
    """Vertices [views, V, 4] in clip space."""
    return torch.einsum("vij,nj->vni", mvp, F.pad(mesh.vertices.detach(), (0, 1), value=1.0))


def compare_visibility(case: Case, i: int, mesh: Mesh, recorded: Raster) -> None:
    """The project's own rasteriser sees the same triangles at the same places.

    Where a pixel's centre lies on an edge, as exactly as the rasteriser knows, either side of it will do.
    """
    name, (rows, height, width) = f"rast{i}", recorded.face_index.shape
    clip = _to_clip(mesh, case["mvp_mtx"][i * rows : (i + 1) * rows])
    own, *nudged = (
        rasterize(
            clip + clip[..., 3:] * clip.new_tensor([2 * x / width, 2 * y / height, 0, 0]), mesh.faces, height, width
        )
        for x, y in _NUDGES
    )
    same = own.face_index == recorded.face_index
    either = torch.stack([raster.face_index == recorded.face_index for raster in nudged]).any(0)
    case.within(f"{name}: triangles", float((~same & ~either).float().mean()), 0.0)
    case.within(f"{name}: pixels on edges", float((~same).float().mean()), _ON_EDGES)
    places = (interpolate(mesh.vertices.detach(), raster, mesh.faces) for raster in (own, recorded))
    case.within(f"{name}: places", _largest_gap(*places, same), 1e-4)
    case.within(f"{name}: depth", _largest_gap(own.depth, recorded.depth, same), 1e-5)


def _largest_gap(first: Tensor, second: Tensor, where: Tensor) -> float:
    return float((first - second).abs()[where].max())


def match(case: Case, name: str, vertices: Tensor, tolerance: float) -> Tensor | None:
    """For each recorded vertex the number of ours at its place; every one of ours is taken once. None if the case
    does not carry the vertices."""
    if name not in case:
        return None
    recorded = case[name]
    distance, nearest = torch.cdist(recorded.double(), vertices.detach().double()).min(dim=1)
    case.within(name, float(distance.max() / recorded.abs().max()), tolerance)
    case.require(f"{name}: a permutation", len(nearest.unique()) == len(nearest) == len(vertices))
    return nearest


def compare_faces(case: Case, name: str, order: Tensor | None, faces: Tensor, *, first: int = 0) -> None:
    """The same triangles, in any order and beginning anywhere; without an order, see `match`, only as many.

    first: the number of the first recorded vertex.
    """
    if name not in case:
        return
    recorded = case[name].long() - first
    case.require(f"{name}: as many triangles", recorded.shape == faces.shape)
    if order is not None:
        case.require(f"{name}: the same triangles", _cycles(order[recorded]) == _cycles(faces))


def close_rows(case: Case, name: str, rows: Tensor, order: Tensor | None, tolerance: float) -> None:
    """What belongs to each vertex is the same; without an order, see `match`, the same for some vertex each."""
    if order is not None:
        case.close(name, rows[order], tolerance)
    elif name in case:
        distance = torch.cdist(case[name].double(), rows.detach().double())
        gap = torch.cat([distance.amin(0), distance.amin(1)]).max() / case[name].abs().max()
        case.within(name, float(gap), tolerance)


def marching_cubes(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("field", "sqrt(sum(((x-c)/r)^2))-1")
    resolution = case.meta["resolution"]
    centre, radii = (torch.tensor(case.meta[name]) for name in "cr")
    line = torch.linspace(-1, 1, resolution)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
    vertices, faces = extract((((grid - centre) / radii).norm(dim=-1) - 1), None, 1.0)
    for kind in ("diffmc", "mccpu"):
        if f"{kind}_grid0" in case:
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
        sdf = scene.grid(resolution)
        line = geometry.field.grid_line(resolution, scene.tensors)
        points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(1, -1, 3)
        _, offset = scene.level_set(points.expand(len(scene), -1, -1), resolution=resolution)
    case.close("grid_sdf", sdf.reshape(len(scene), -1, 1), 1e-5)
    if deforms:
        case.close("grid_deformation", offset, 1e-5)
    material = Unlit({"color_activation": "sigmoid-mipnerf"})
    (mesh,) = extract_meshes(scene, material, resolution, ["a recorded case"])
    order = match(case, "v_pos", mesh.vertices, 1e-5)
    compare_faces(case, "faces", order, mesh.faces)
    close_rows(case, "v_rgb", mesh.colors, order, 1e-5)
    close_rows(case, "v_nrm", vertex_normals(mesh.vertices, mesh.faces), order, 1e-4)
    _compare_obj(case, mesh, workbench.folder / "recorded.obj")


def _compare_obj(case: Case, mesh: Mesh, path: Path) -> None:
    """The rows of the file, whose vertices may come in another order than the mesh's."""
    write_mesh(path, mesh, normals=False)
    rows = [line.split() for line in path.read_text().splitlines()]
    vertices = torch.tensor([[float(x) for x in row[1:]] for row in rows if row[0] == "v"])
    faces = torch.tensor([[int(x) for x in row[1:]] for row in rows if row[0] == "f"])
    order = None
    if "obj_v" in case:
        recorded = case["obj_v"]
        distance, order = torch.cdist(recorded[:, :3].double(), vertices[:, :3].double()).min(dim=1)
        case.within("obj_v: places", float(distance.max()), 1e-5)
        case.within("obj_v: colours", float((vertices[order, 3:] - recorded[:, 3:]).abs().max()), _EIGHT_BITS + 1e-5)
        case.require("obj_v: a permutation", len(order.unique()) == len(order) == len(vertices))
    compare_faces(case, "obj_f", order, faces - 1, first=1)


def _cycles(faces: Tensor) -> set[tuple[int, ...]]:
    """Triangles without regard to their order and to where each begins."""
    begins = faces.argmin(dim=1, keepdim=True)
    turned = faces.gather(1, (begins + torch.arange(3)) % 3)
    return set(map(tuple, turned.tolist()))
