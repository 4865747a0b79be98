import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from full_disk import files_end_at
from painted_ball import STEEPEST, painted_ball
from PIL import Image
from solids import sphere, tetrahedron

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.exporters.files import check_mesh, read_mesh, write_mesh
from triplaneturbo.exporters.gltf import linear_to_srgb, srgb_to_linear
from triplaneturbo.exporters.texture import add_texture
from triplaneturbo.types import Mesh


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
@pytest.mark.parametrize("normals", [True, False])
def test_what_is_written_is_read_back(tmp_path, suffix, normals):
    mesh = sphere()
    write_mesh(tmp_path / f"a{suffix}", mesh, normals=normals)
    back = read_mesh(tmp_path / f"a{suffix}")
    torch.testing.assert_close(back.vertices, mesh.vertices, atol=1e-6, rtol=0)
    assert torch.equal(back.faces, mesh.faces)
    torch.testing.assert_close(back.colors, mesh.colors, atol=1 / 255, rtol=0)


def test_glb_colours_keep_dark_values(tmp_path):
    mesh = tetrahedron()
    write_mesh(tmp_path / "a.glb", mesh)
    torch.testing.assert_close(read_mesh(tmp_path / "a.glb").colors, mesh.colors, atol=1e-6, rtol=0)


def test_glb_is_y_up_facing_z_with_linear_colours(tmp_path):
    """Read by another implementation: our front (+x) is glTF's +z, our up (+z) is glTF's +y."""
    write_mesh(tmp_path / "a.glb", tetrahedron())
    seen = trimesh.load(tmp_path / "a.glb", force="mesh", process=False)
    np.testing.assert_allclose(seen.vertices, [[0, 0, 0], [0, 0, 0.9], [0.6, 0, 0], [0, 0.3, 0]], atol=1e-6)
    assert seen.is_watertight
    assert seen.volume == pytest.approx(0.9 * 0.6 * 0.3 / 6, rel=1e-5)
    colors = seen.visual.vertex_colors  # trimesh keeps 8 linear bits
    assert colors[:3].tolist() == [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]]
    np.testing.assert_allclose(colors[3, :3], 0.0100228 * 255, atol=1)  # sRGB 0.1


def stored_vectors(path, attribute):
    """A vertex attribute as a .glb file has it, in its axes. (trimesh computes normals again.)"""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"][attribute]]
    offset = 28 + length + document["bufferViews"][accessor["bufferView"]]["byteOffset"]
    return np.frombuffer(data, np.float32, 3 * accessor["count"], offset).reshape(-1, 3)


@pytest.mark.parametrize("with_texture", [False, True])
def test_glb_normals_are_in_the_axes_of_its_positions(tmp_path, textured, with_texture):
    """On a ball around the origin they point where the positions do."""
    write_mesh(tmp_path / "a.glb", textured if with_texture else sphere())
    positions, normals = (stored_vectors(tmp_path / "a.glb", name) for name in ("POSITION", "NORMAL"))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    assert ((positions * normals).sum(1) / np.linalg.norm(positions, axis=1)).min() > 0.9


def test_glb_structure(tmp_path):
    write_mesh(tmp_path / "a.glb", tetrahedron())
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + json_length])
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "COLOR_0"}
    position = document["accessors"][attributes["POSITION"]]
    np.testing.assert_allclose(position["min"], [0, 0, 0])
    np.testing.assert_allclose(position["max"], [0.6, 0.3, 0.9], rtol=1e-6)
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])


def test_obj_lines(tmp_path):
    write_mesh(tmp_path / "a.obj", tetrahedron(), normals=False)
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert lines[1] == "v 0.900000 0.000000 0.000000 0.000000 1.000000 0.000000"
    assert lines[4] == "f 1 3 2"
    assert len(lines) == 8


def test_obj_normals_point_outwards(tmp_path):
    write_mesh(tmp_path / "a.obj", sphere())
    normals = [line.split()[1:] for line in (tmp_path / "a.obj").read_text().splitlines() if line.startswith("vn")]
    outward = torch.nn.functional.normalize(sphere().vertices, dim=1)
    cosine = (torch.tensor([[float(x) for x in n] for n in normals]) * outward).sum(1)
    assert cosine.min() > 0.97


def test_srgb_curve():
    values = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6)
    assert srgb_to_linear(np.array(0.5)) == pytest.approx(0.21404114, abs=1e-8)


def test_meshes_without_colours_stay_without(tmp_path):
    mesh = Mesh(tetrahedron().vertices, tetrahedron().faces)
    for name in ("a.glb", "a.obj"):
        write_mesh(tmp_path / name, mesh)
        assert read_mesh(tmp_path / name).colors is None


def test_unknown_kinds_of_file(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.glb or \.obj"):
        write_mesh(tmp_path / "a.ply", sphere())
    (tmp_path / "b.glb").write_bytes(b"not a mesh" * 10)
    with pytest.raises(ValueError, match="not a binary glTF"):
        read_mesh(tmp_path / "b.glb")
    trimesh.creation.box().export(tmp_path / "c.glb")
    with pytest.raises(ValueError, match=r"another program; convert it to \.obj"):
        read_mesh(tmp_path / "c.glb")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_mesh(tmp_path / "a.obj", tetrahedron())
    before = (tmp_path / "a.obj").read_bytes()

    with files_end_at(10), pytest.raises(OSError, match="File too large"):
        write_mesh(tmp_path / "a.obj", sphere())
    assert (tmp_path / "a.obj").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.obj"]


def test_meshes_with_nothing_to_see_are_errors():
    mesh = tetrahedron()
    with pytest.raises(EmptyFieldError, match=r"'a cat' has no surface.*another seed"):
        check_mesh(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)), "a cat")
    with pytest.raises(EmptyFieldError, match=r"'a cat' has numbers that are not finite"):
        check_mesh(Mesh(mesh.vertices * float("nan"), mesh.faces), "a cat")
    with pytest.raises(EmptyFieldError, match="not finite"):
        check_mesh(Mesh(mesh.vertices, mesh.faces, mesh.colors / 0), "a cat")
    check_mesh(mesh, "a cat")


@pytest.fixture(scope="module")
def textured():
    return add_texture(painted_ball(16), size=64, max_faces=300)


def positions_and_colors(loaded):
    """What another implementation finds at the middle of every face, of textures as they are stored."""
    corners, coordinates = loaded.vertices[loaded.faces], loaded.visual.uv[loaded.faces]
    material = loaded.visual.material
    picture = np.asarray(getattr(material, "baseColorTexture", None) or material.image)[..., :3] / 255
    height, width = picture.shape[:2]
    u, v = coordinates.mean(1).T  # v from below
    column, row = (u * width).astype(int), ((1 - v) * height).astype(int)
    return corners.mean(1), picture[row, column]


@pytest.mark.parametrize(("kind", "tolerance"), [("png", 0.5 / 255), ("jpg", 0.05)])
@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_textures_in_the_eyes_of_others(tmp_path, textured, suffix, kind, tolerance):
    write_mesh(tmp_path / f"a{suffix}", textured, texture_format=kind)
    loaded = trimesh.load(tmp_path / f"a{suffix}", force="mesh", process=False)
    axes = [2, 0, 1] if suffix == ".glb" else [0, 1, 2]
    seen, colors = positions_and_colors(loaded)
    seen = torch.from_numpy(seen[:, axes].copy()).float()
    middles = textured.vertices[textured.faces].mean(1)
    nearest = torch.cdist(seen.double(), middles.double()).min(1)
    assert nearest.values.max() < 1e-5
    assert len(nearest.indices.unique()) == len(textured.faces)
    truth = textured.surface.colors(textured.surface.project(seen)).numpy()
    # The middle of a face is at most a texel from a texel's centre.
    assert np.abs(colors - truth).mean() < tolerance + STEEPEST * 0.02
    assert np.abs(colors - (truth[:, [1, 2, 0]])).mean() > 0.1
    merged = trimesh.Trimesh(loaded.vertices, loaded.faces, process=True, merge_tex=True, merge_norm=True)
    assert merged.is_watertight
    assert merged.volume > 0


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
@pytest.mark.parametrize("normals", [True, False])
def test_textured_meshes_are_read_back(tmp_path, textured, suffix, normals):
    write_mesh(tmp_path / f"a{suffix}", textured, normals=normals)
    back = read_mesh(tmp_path / f"a{suffix}")
    assert back.colors is None
    torch.testing.assert_close(back.texture.image, textured.texture.image, atol=0.51 / 255, rtol=0)
    pairs = [
        torch.cat([mesh.vertices[mesh.faces], mesh.texture.coordinates[mesh.texture.faces]], dim=2)
        for mesh in (textured, back)
    ]
    distance = torch.cdist(*(corners.flatten(1).double() for corners in pairs)).min(1)
    assert distance.values.max() < 1e-5
    assert torch.equal(distance.indices.sort().values, torch.arange(len(textured.faces)))


def test_obj_points_to_its_material_and_that_to_the_picture(tmp_path, textured):
    write_mesh(tmp_path / "cube.obj", textured)
    assert {p.name for p in tmp_path.iterdir()} == {"cube.obj", "cube.mtl", "texture_kd.png"}
    lines = (tmp_path / "cube.obj").read_text().splitlines()
    assert lines[:2] == ["mtllib cube.mtl", "usemtl surface"]
    kinds = [line.split()[0] for line in lines[2:]]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    own = textured.texture
    assert counts == {
        "v": len(textured.vertices),
        "vn": len(textured.vertices),
        "vt": len(own.vertices),
        "f": len(own.faces),
    }
    material = (tmp_path / "cube.mtl").read_text().splitlines()
    assert {"map_Kd texture_kd.png", "Kd 1 1 1"} < set(material)  # the picture is multiplied by the diffuse colour
    assert Image.open(tmp_path / "texture_kd.png").size == (64, 64)


def test_glb_with_a_texture_is_a_rough_material(tmp_path, textured):
    write_mesh(tmp_path / "a.glb", textured)
    data = (tmp_path / "a.glb").read_bytes()
    document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    primitive = document["meshes"][0]["primitives"][0]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    material = document["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert (material["metallicFactor"], material["roughnessFactor"]) == (0, 1)
    assert document["images"][0]["mimeType"] == "image/png"
    clamp_to_edge = 33071  # of OpenGL: nothing of the opposite border is mixed in
    assert (document["samplers"][0]["wrapS"], document["samplers"][0]["wrapT"]) == (clamp_to_edge,) * 2
    assert document["buffers"][0]["byteLength"] % 4 == 0
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])
