"""What holds for scenes of every kind."""

import pytest
import torch

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.errors import ConfigError
from triplaneturbo.exporters.texture import add_texture
from triplaneturbo.materials import Unlit
from triplaneturbo.renderers.mesh import MeshRenderer
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import FieldScene, HashGridField, MeshScene, PlaneField
from triplaneturbo.scenes.isosurface import extract_meshes
from triplaneturbo.types import Mesh

TEXT = torch.zeros(2, 1)


def two_balls():
    field = PlaneField({"bias": "sphere", "bias_size": 0.5, "network": {"n_neurons": 4}}, channels=2)
    return FieldScene(field, {"planes": 0.2 * torch.randn(2, 6, 2, 5, 5)})


def views_of(scene, renderer):
    full = torch.ones(4)
    around = orbit_cameras(20 * full, 90 * torch.arange(4.0), 2 * full, 50 * full, n_view=2, relative=False)
    return renderer(scene, around, TEXT, size=(24, 24))


def surroundings():
    return {"material": Unlit(), "background": lambda directions, text: torch.full_like(directions, 0.5)}


def test_a_detached_scene_sends_its_gradients_back_once():
    scene = two_balls()
    source = scene.tensors["planes"].clone().requires_grad_()
    made = FieldScene(scene.field, {"planes": 2 * source})
    copy, send_back = made.detached()
    points = torch.rand(2, 9, 3) - 0.5
    for _ in range(2):  # two renderers, one after the other
        copy.value(points).square().sum().backward()
    assert source.grad is None
    send_back()
    (truth,) = torch.autograd.grad(
        2 * FieldScene(scene.field, {"planes": 2 * source}).value(points).square().sum(), source
    )
    torch.testing.assert_close(source.grad, truth)


def test_a_scene_without_tensors_trains_its_field():
    scene, send_back = FieldScene(HashGridField({"encoding": {"n_levels": 2, "log2_hashmap_size": 8}})).detached()
    scene.value(torch.zeros(1, 3, 3)).sum().backward()
    send_back()
    assert scene.field.value_network.layers[0].weight.grad is not None


def test_meshes_of_a_field_are_drawn_as_the_field_is():
    """A mesh that was extracted at the renderer's resolution, coloured by the same field, gives the same pictures."""
    scene, renderer = two_balls(), MeshRenderer({"isosurface_resolution": 20}, **surroundings())
    meshes = extract_meshes(scene, Unlit(), 20, ["a", "b"])
    explicit = MeshScene(meshes, scene.field, scene.tensors)
    searched, given = views_of(scene, renderer), views_of(explicit, renderer)
    for name in ("rgb", "normal", "opacity", "depth"):
        torch.testing.assert_close(getattr(given, name), getattr(searched, name), rtol=1e-4, atol=1e-4)
    painted = views_of(MeshScene(meshes), renderer)
    assert (painted.rgb - searched.rgb).abs().mean() < 0.01  # colours between vertices are interpolated


def test_gradients_reach_the_vertices_and_colours_of_meshes():
    meshes = extract_meshes(two_balls(), Unlit(), 16, ["a", "b"])
    leaves = [tensor.requires_grad_() for mesh in meshes for tensor in (mesh.vertices, mesh.colors)]
    copy, send_back = MeshScene(meshes).detached()
    views = views_of(copy, MeshRenderer({}, **surroundings()))
    (views.rgb.square().sum() + views.depth.sum()).backward()
    assert all(leaf.grad is None for leaf in leaves)
    send_back()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_explicit_meshes_are_exported_with_the_colours_of_their_field():
    scene = two_balls()
    meshes = extract_meshes(scene, Unlit(), 24, ["a", "b"])
    plain = [Mesh(mesh.vertices, mesh.faces) for mesh in meshes]
    painted = extract_meshes(MeshScene(plain, scene.field, scene.tensors), Unlit(), 2, ["a", "b"])
    for mesh, expected in zip(painted, meshes, strict=True):
        assert torch.equal(mesh.vertices, expected.vertices)
        torch.testing.assert_close(mesh.colors, expected.colors)
    texture = add_texture(painted[1], size=64, max_faces=200).texture
    assert texture.image.shape == (64, 64, 3)


def test_a_mesh_needs_colours_of_its_own_or_a_field():
    with pytest.raises(ValueError, match="needs a texture"):
        MeshScene([Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))])
    points = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="no texture to read features from"):
        MeshScene([Mesh(points, torch.tensor([[0, 1, 2]]), colors=points)]).features(points[None])


def test_a_renderer_says_which_scenes_it_can_draw():
    class Meshes:
        makes = MeshScene

    MeshRenderer({}, **surroundings()).check_geometry(Meshes())
    with pytest.raises(ConfigError, match="draws scenes of the kind FieldScene, but Meshes makes a MeshScene"):
        VolumeRenderer({}, **surroundings()).check_geometry(Meshes())
