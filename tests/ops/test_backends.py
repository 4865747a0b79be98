"""Which implementation is taken and why, and that each agrees with torch's."""

import math

import pytest
import torch
from packages import implementations, provided, stand_in

from triplaneturbo.attention import attend
from triplaneturbo.errors import ConfigError
from triplaneturbo.ops import backends
from triplaneturbo.ops.backends import Backends, choose, using
from triplaneturbo.ops.hashgrid import HashGrid
from triplaneturbo.ops.marching_cubes import marching_cubes_packed
from triplaneturbo.ops.rasterize import antialias, interpolate, rasterize
from triplaneturbo.performance import Performance
from triplaneturbo.performance import using as performing

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_torch_is_taken_on_a_cpu_and_where_references_are_asked_for():
    for place in backends.PLACES:
        assert choose(place, CPU).name == "torch"
        with performing(Performance("reference")):
            assert choose(place, CUDA) == backends.Choice("torch", "performance: reference")
    assert choose("planes", CUDA).name == choose("rows", CUDA).name == "triton"


def test_triton_is_not_taken_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(backends, "_TRITON_IS_INSTALLED", False)
    assert choose("planes", CUDA).reason == "triton: the package triton is not installed (pip install triton)"
    with pytest.raises(ConfigError, match="pip install triton"):
        choose("planes", CUDA, asked="triton")


@pytest.mark.parametrize(("place", "package"), [("isosurface", "diso"), ("rasterizer", "nvdiffrast")])
def test_what_may_not_be_used_commercially_is_not_taken_in_silence(place, package, caplog):
    with stand_in(package):
        plain = choose(place, CUDA)
        assert plain.name != package
        assert "needs backends.allow_noncommercial=true" in plain.reason
        with using(Backends(allow_noncommercial=True)):
            assert choose(place, CUDA).name == package
            with performing(Performance("reference")):
                assert choose(place, CUDA).name == "torch"
        with using(Backends(**{place: package})):
            assert choose(place, CUDA).name == package
        assert "forbids commercial use" in caplog.text


@pytest.mark.parametrize(("place", "package"), [("hashgrid", "tinycudann"), ("attention", "xformers")])
def test_what_was_not_measured_is_taken_by_name_only(place, package):
    with stand_in(package):
        assert f"{package}: not measured" in choose(place, CUDA).reason or choose(place, CUDA).name == "triton"
        assert choose(place, CUDA, asked=package).name == package


def test_what_is_asked_for_and_cannot_be_had_says_what_to_do(monkeypatch):
    monkeypatch.setattr(backends, "loading_problem", lambda name: f"{name} is not installed (pip install {name})")
    with pytest.raises(ConfigError, match=r"backends.isosurface=diso cannot be used: .* \(pip install diso\)"):
        backends.use(Backends(isosurface="diso"))
    assert backends.current() == Backends()
    with pytest.raises(
        ConfigError, match=r"backend='xformers' was asked for \(attention\), but .*pip install xformers"
    ):
        choose("attention", CUDA, asked="xformers")
    with pytest.raises(ConfigError, match="rasterizer has no such implementation"):
        choose("rasterizer", CUDA, asked="diso")
    with pytest.raises(ConfigError, match="there is no Triton kernel for attention"):
        choose("attention", CUDA, asked="triton")


def test_a_package_that_does_not_load_says_why(tmp_path, monkeypatch):
    (tmp_path / "diso.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    backends.loading_problem.cache_clear()
    problem = backends.loading_problem("diso")
    backends.loading_problem.cache_clear()
    assert problem.startswith("diso cannot be imported: ImportError: undefined symbol")
    assert "pip install" in problem


def test_packages_are_refused_tensors_that_they_cannot_take():
    with stand_in("nvdiffrast"):
        with pytest.raises(ConfigError, match=r"computes in torch.float32, not in torch.float64"):
            choose("rasterizer", CPU, torch.float64, asked="nvdiffrast")
        with using(Backends(allow_noncommercial=True)):
            assert choose("rasterizer", CUDA, torch.float64).name != "nvdiffrast"
            torch.use_deterministic_algorithms(True)
            try:
                assert choose("rasterizer", CUDA).name != "nvdiffrast"
                with pytest.raises(ConfigError, match="differ from run to run"):
                    choose("rasterizer", CUDA, asked="nvdiffrast")
            finally:
                torch.use_deterministic_algorithms(False)
    with pytest.raises(ConfigError, match="backend='auto' or 'torch'"):
        choose("planes", CPU, asked="triton")


# Each implementation against torch's


def numbers(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def sorted_rows(rows):
    return torch.tensor(sorted(rows.tolist()))


def directed_edges(faces):
    return [edge for a, b, c in faces.tolist() for edge in ((a, b), (b, c), (c, a))]


@pytest.mark.parametrize("device", implementations("diso"))
@pytest.mark.parametrize("deformed", [False, True])
def test_diso_extracts_what_torch_does(device, deformed):
    fields = numbers(3, 9, 10, 11) - 0.4
    fields[1] = -1.0  # all inside: a closed box
    shifts = (numbers(3, 9, 10, 11, 3, seed=1) - 0.5) * 0.5 if deformed else None

    def extracted(backend):
        given = [None if x is None else x.to(device).requires_grad_() for x in (fields, shifts)]
        vertices, faces, sizes = marching_cubes_packed(*given, level=0.1, backend=backend)
        grid = torch.arange(3).repeat_interleave(torch.tensor([count for count, _ in sizes]))
        assert torch.equal(grid[faces[:, 0].cpu()].bincount(), torch.tensor([count for _, count in sizes]))
        loss = (vertices.square() * torch.tensor([1.0, 2.0, 3.0], device=device)).sum()
        gradients = torch.autograd.grad(loss, [x for x in given if x is not None])
        return vertices.detach().cpu(), faces.cpu(), grid, [g.cpu() for g in gradients]

    with provided("diso", device):
        vertices, faces, grid, gradients = extracted("diso")
    reference = extracted("torch")
    assert torch.equal(grid.bincount(), reference[2].bincount())
    for number in range(3):
        mine, theirs = (sorted_rows(v[g == number]) for v, g in ((vertices, grid), (reference[0], reference[2])))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    for gradient, expected in zip(gradients, reference[3], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)
    assert (grid[faces] == grid[faces[:, :1]]).all()
    assert torch.equal(faces.unique(), torch.arange(len(vertices)))
    edges = directed_edges(faces)
    assert {(b, a) for a, b in edges} == set(edges)  # closed
    corners = vertices[faces].double()
    volume = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume > 0  # faces point outwards


def test_diso_closes_every_mesh():
    with stand_in("diso"), pytest.raises(ConfigError, match="closes every mesh"):
        marching_cubes_packed(numbers(1, 4, 4, 4), pad=False, backend="diso")


@pytest.mark.parametrize("device", implementations("tinycudann"))
def test_tinycudann_looks_up_what_torch_does_in_our_parameters(device):
    grid = HashGrid(8, 2, 12, 4, 1.8114473285278132, torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        grid.params.mul_(1e4)
    state = {name: tensor.clone() for name, tensor in grid.state_dict().items()}
    points, weight = numbers(1000, 3).to(device).requires_grad_(), numbers(1000, 16, seed=1).to(device)

    def looked_up(backend):
        features = grid(points, backend=backend)
        return features, *torch.autograd.grad((features * weight).sum(), (points, grid.params))

    with provided("tinycudann", device):
        found = looked_up("tinycudann")
        assert grid(points[:0], backend="tinycudann").shape == (0, 16)
    for mine, theirs, scale in zip(found, looked_up("torch"), (1, 300, 10), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * scale)
    assert grid.state_dict().keys() == state.keys()
    assert torch.equal(grid.state_dict()["params"], state["params"])


def test_another_layout_of_a_hash_grid_is_refused():
    grid = HashGrid(2, 2, 8, 4, 1.5)
    grid.layout["n_levels"] = 3
    with stand_in("tinycudann"), pytest.raises(ConfigError, match="rounds a resolution differently"):
        grid(numbers(3, 3), backend="tinycudann")


def sphere(radius, size=24):
    line = torch.linspace(-1, 1, size)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    vertices, faces, _ = marching_cubes_packed((points.norm(dim=-1) - radius)[None], backend="torch")
    return vertices / (size - 1) * 2 - 1, faces


def perspective(vertices, turn):
    """A pinhole at distance 2, focal length 3, near 0.1, far 10, the object turned about the picture's normal."""
    cosine, sine = math.cos(turn), math.sin(turn)
    x, y, depth = vertices[:, 0], vertices[:, 1], 2 - vertices[:, 2]
    return torch.stack([3 * (cosine * x - sine * y), 2 * (sine * x + cosine * y), (10.1 * depth - 2) / 9.9, depth], 1)


@pytest.mark.parametrize("device", implementations("nvdiffrast"))
@pytest.mark.parametrize("several", [False, True], ids=["one mesh", "several"])
def test_nvdiffrast_draws_what_torch_does(device, several):
    """Two views of a sphere, or of a large one, no mesh at all, and a small one. The package decides coverage on a grid
    of 1/16 of a pixel: few pixels see another face."""
    balls = [sphere(0.5), sphere(0.3)] if several else [sphere(0.5)]
    vertices = torch.cat([ball[0] for ball in balls]).to(device)
    faces = torch.cat([balls[0][1], balls[1][1] + len(balls[0][0])] if several else [balls[0][1]]).to(device)
    owner = [torch.full((len(ball[1]),), 2 * number) for number, ball in enumerate(balls)]
    meshes = (torch.cat(owner).to(device), 3) if several else ()

    def drawn(backend):
        scale = torch.ones((), device=device, requires_grad=True)
        positions = torch.stack([perspective(vertices * scale, turn) for turn in (0.0, 0.7)])
        raster = rasterize(positions, faces, 96, 80, *meshes, backend=backend)
        points = interpolate(vertices, raster, faces)
        clip = interpolate(positions, raster, faces)
        mask = (raster.face_index >= 0).float().unsqueeze(-1)
        smooth = antialias(torch.cat([mask, points], -1), raster, positions, faces, *meshes[:1])
        area = smooth[..., 0].sum()
        slopes = [torch.autograd.grad(x, scale, retain_graph=True)[0] for x in (area, raster.depth.sum(), clip.sum())]
        return [
            x.detach().cpu() for x in (raster.face_index, raster.barycentric, raster.depth, points, clip, smooth)
        ], [slope.item() for slope in slopes]

    with provided("nvdiffrast", device):
        (face, *pictures, smooth), slopes = drawn("nvdiffrast")
    (their_face, *their_pictures, their_smooth), their_slopes = drawn("torch")
    same = face == their_face
    assert face.shape == ((6 if several else 2), 96, 80)
    assert same.float().mean() > 0.98
    assert (face >= 0).float().mean() > 0.1
    for mine, theirs in zip(pictures, their_pictures, strict=True):
        torch.testing.assert_close(mine[same], theirs[same], rtol=0, atol=2e-3)
    torch.testing.assert_close(smooth[..., 0].sum((1, 2)), their_smooth[..., 0].sum((1, 2)), rtol=0.01, atol=0)
    assert slopes == pytest.approx(their_slopes, rel=0.05)


def test_nvdiffrast_is_refused_faces_that_are_not_sorted_by_mesh():
    vertices, faces = sphere(0.5, 8)
    owner = torch.arange(len(faces)) % 2
    with stand_in("nvdiffrast"), pytest.raises(ValueError, match="sort faces"):
        rasterize(perspective(vertices, 0.0)[None], faces, 8, 8, owner, 2, backend="nvdiffrast")


def test_nvdiffrast_is_not_asked_for_an_empty_picture():
    with stand_in("nvdiffrast"):
        raster = rasterize(torch.zeros(2, 0, 4), torch.zeros(0, 3, dtype=torch.long), 4, 6, backend="nvdiffrast")
    assert (raster.face_index == -1).all()


@pytest.mark.parametrize("device", implementations("xformers"))
def test_xformers_attends_as_torch_does(device):
    given = [numbers(2, 3, n, 16, seed=n).to(device).requires_grad_() for n in (20, 30, 30)]

    def attended(backend):
        output = attend(*given, scale=0.3, backend=backend)
        return output, *torch.autograd.grad(output.square().sum(), given)

    with provided("xformers", device):
        found = attended("xformers")
    for mine, theirs in zip(found, attended("torch"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
