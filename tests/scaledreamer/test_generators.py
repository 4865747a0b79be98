"""Scenes of several prompts, their noise, their gradients."""

import pytest
import torch
import torch.nn.functional as F
from tiny_generators import GENERATORS, build, text_of, texts
from torch import Tensor

from custom.scaledreamer import Conv3dNet, TriplaneTransformer
from custom.scaledreamer.fields import look_up
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.draws import Draws, generation_noise
from triplaneturbo.errors import ConfigError
from triplaneturbo.geometry import FreeParameters
from triplaneturbo.renderers import VolumeRenderer
from triplaneturbo.types import Cameras

SAMPLES = (3, 11, 4)


def draws(*samples: int) -> Draws:
    return Draws(0, samples, torch.device("cpu"))


def points(prompts: int, count: int = 40) -> Tensor:
    return torch.rand(prompts, count, 3, generator=torch.Generator().manual_seed(2)) * 4 - 2


def views_of(prompts: int, n_view: int) -> Cameras:
    rows = prompts * n_view
    full, azimuth = torch.ones(rows), torch.linspace(0, 300, rows)
    return orbit_cameras(20 * full, azimuth, 3 * full, 60 * full, n_view=n_view, relative=False)


@pytest.mark.parametrize("name", GENERATORS)
def test_several_prompts_at_once_are_each_of_them_alone(name: str) -> None:
    geometry, states = build(name), texts(3)
    together, x = geometry.scene(states, draws(*SAMPLES)), points(3)
    sample = together.query(x, normals=True)
    assert len(together) == 3
    for prompt, number in enumerate(SAMPLES):
        alone = geometry.scene(text_of(states, prompt), draws(number))
        for key, tensor in alone.tensors.items():
            torch.testing.assert_close(together.tensors[key][prompt], tensor[0])
        row = slice(prompt, prompt + 1)
        expected = alone.query(x[row], normals=True)
        torch.testing.assert_close(sample.value[row], expected.value)
        torch.testing.assert_close(sample.features[row], expected.features)
        torch.testing.assert_close(sample.gradient[row], expected.gradient, rtol=1e-4, atol=1e-3)
    assert (sample.value[0] - together.value(x[:1].expand(3, -1, -1))[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", GENERATORS)
def test_several_views_of_several_prompts_are_each_prompts_views_alone(name: str) -> None:
    geometry, states = build(name), texts(2)
    scene, cameras = geometry.scene(states, draws(3, 4)), views_of(2, n_view=3)
    tints = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]])

    def background(directions: Tensor, text: Tensor) -> Tensor:
        return text[:, :3].repeat_interleave(len(directions) // len(text), 0)[:, None, None].expand_as(directions)

    options = {"num_samples_per_ray": 6, "num_samples_per_ray_importance": 6, "far_plane": 6.0, "law": "volsdf"}
    renderer = VolumeRenderer(options, material=torch.sigmoid, background=background).eval()
    both = renderer(scene, cameras, tints, size=(6, 6))
    assert both.opacity.max() > 0.5
    for prompt in range(2):
        rows = slice(3 * prompt, 3 * prompt + 3)
        some = cameras.select(rows, n_view=3)
        alone = renderer(scene.prompt(prompt), some, tints[prompt : prompt + 1], size=(6, 6))
        torch.testing.assert_close(both.rgb[rows], alone.rgb, rtol=1e-4, atol=1e-4)
    assert (both.rgb[:3] - both.rgb[3:]).abs().max() > 0.05


@pytest.mark.parametrize("name", GENERATORS)
def test_gradients_reach_every_parameter_through_a_detached_scene(name: str) -> None:
    geometry = build(name)
    leaf, send_back = geometry.scene(texts(2), draws(3, 4)).detached()
    sample = leaf.query(points(2), normals=True)
    (sample.value.sum() + sample.features.sum() + sample.gradient.square().sum()).backward()
    send_back()
    untouched = [key for key, p in geometry.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("name", ["hyper-ingp", "triplane-transformer"])
def test_texts_are_told_apart_and_nothing_else_is(name: str) -> None:
    geometry, states = build(name), texts(2)
    first, again = geometry.scene(states, draws(1, 2)), geometry.generate(states, torch.randn(2, 4, 1, 1), 1)
    assert all(torch.equal(first.tensors[key], x) for key, x in again.tensors.items())
    assert all((x[0] - x[1]).abs().max() > 1e-4 for x in first.tensors.values())


def naive_trilinear(voxels: Tensor, point: Tensor) -> Tensor:
    """Features at a point of [-1, 1]^3, x along the last axis, 0 outside; a loop over all voxels."""
    found = torch.zeros(len(voxels), dtype=voxels.dtype)
    depth, height, width = voxels.shape[1:]
    for k in range(depth):
        for j in range(height):
            for i in range(width):
                weight = torch.ones((), dtype=voxels.dtype)
                for coordinate, index, count in zip(point, (i, j, k), (width, height, depth), strict=True):
                    weight = weight * (1 - (((coordinate + 1) * count - 1) / 2 - index).abs()).clamp(min=0)
                found = found + weight * voxels[:, k, j, i]
    return found


def test_voxels_are_read_where_they_are_for_each_prompt() -> None:
    field = build("conv3d-net").field.double()
    voxels = torch.randn(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = points(2, count=6).double()
    found = field.encode({"voxels": voxels}, x)
    for prompt in range(2):
        for n in range(6):
            expected = naive_trilinear(voxels[prompt], x[prompt, n] / field.radius)
            torch.testing.assert_close(found[prompt, n], expected)


def test_the_lookup_in_voxels_whose_gradient_repeats_is_the_usual_one() -> None:
    voxels = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = (points(2, 200) * 0.7).double()  # two fifths of them outside
    found, gradients = [], []
    for lookup in (look_up, lambda v, x: F.grid_sample(v, x[:, None, None], align_corners=False)[:, :, 0, 0].mT):
        leaves = voxels.clone().requires_grad_(), places.clone().requires_grad_()
        found.append(lookup(*leaves))
        gradients.append(torch.autograd.grad(found[-1].square().sum(), leaves))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.gpu
def test_the_gradient_of_voxels_repeats_on_a_gpu() -> None:
    geometry, states = build("conv3d-net").cuda(), texts(2)
    voxels = geometry.scene(states.to("cuda"), Draws(0, (3, 4), torch.device("cuda"))).tensors["voxels"].detach()
    x, gradients = points(2, 100_000).cuda(), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(4):
            leaf = voxels.clone().requires_grad_()
            value = geometry.field.value({"voxels": leaf}, x)
            gradients.append(torch.autograd.grad(value.square().sum(), leaf)[0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_convolutions_of_a_style_are_those_of_scaled_weights() -> None:
    """Of one prompt, and with outputs of a unit variance where the inputs have one."""
    convolution = build("conv3d-net").space_generator.synthesis.blocks[0].conv0.double()
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 6, 5, 5, 5, generator=generator, dtype=torch.float64)
    scale = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    found = convolution.convolve(x, scale, demodulate=True)
    for prompt in range(2):
        weight = convolution.weight * scale[prompt][None, :, None, None, None]
        weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None, None]
        torch.testing.assert_close(found[prompt], F.conv3d(x[prompt], weight, padding=1), rtol=1e-5, atol=1e-6)


def test_noise_makes_other_scenes_of_the_same_text() -> None:
    geometry, states = build("conv3d-net"), texts(1)
    assert isinstance(geometry, Conv3dNet)
    first, second = (geometry.scene(states, draws(n)).tensors["voxels"] for n in (1, 2))
    assert (first - second).abs().max() > 1e-2
    noise = generation_noise([5], (1, 4, 1, 1))
    once, again = (geometry.generate(states, noise).tensors["voxels"] for _ in range(2))
    assert torch.equal(once, again)
    other = geometry.generate(states, generation_noise([6], (1, 4, 1, 1))).tensors["voxels"]
    assert (once - other).abs().max() > 1e-2


def test_without_noise_there_is_no_scene() -> None:
    geometry = build("conv3d-net")
    with pytest.raises(ValueError, match="give draws"):
        geometry.scene(texts(1))
    with pytest.raises(ValueError, match=r"needs 4 numbers of noise for a prompt, not 3; give data.latent_shape more"):
        geometry.generate(texts(1), torch.zeros(1, 3, 1, 1), 1)


def test_start_scenes_are_spheres() -> None:
    """The hash grid starts near 0, so the distance is that of the bias; the others are near it."""
    cls, options = GENERATORS["hyper-ingp"]
    geometry, x = cls(options), points(1)
    distance = x.norm(dim=-1, keepdim=True) - 0.5
    torch.testing.assert_close(geometry.scene(texts(1)).value(x), distance, rtol=0, atol=1e-3)


def test_a_pooled_text_is_one_more_token() -> None:
    cls, options = GENERATORS["triplane-transformer"]
    geometry = cls({"space_generator": {**options["space_generator"], "pooled_text": True}})
    assert isinstance(geometry, TriplaneTransformer)
    states = texts(2)
    planes = geometry.scene(states).tensors["planes"]
    assert planes.shape == (2, 3, 4, 6, 6)
    generator = geometry.space_generator
    other = generator(torch.zeros_like(states.tokens), states.pooled)
    torch.testing.assert_close(planes, other)
    assert (planes[0] - planes[1]).abs().max() > 1e-4


def test_exact_normals_agree_with_differences_where_there_are_both() -> None:
    for name in ("hyper-ingp", "triplane-transformer"):
        exact = build(name, field={**GENERATORS[name][1].get("field", {}), "normals": "analytic"}).double()
        tensors = {key: x.double() for key, x in build(name).scene(texts(1)).tensors.items()}
        x = points(1).double() * 0.9
        truth = exact.field.query(tensors, x, normals=True).gradient
        for how in ("forward_inside", "central_inside", "finite_difference"):
            options = {**GENERATORS[name][1].get("field", {}), "normals": how, "finite_difference_step": 1e-6}
            near = build(name, field=options).double().field.query(tensors, x, normals=True).gradient
            torch.testing.assert_close(near, truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("conv3d-net", {"field": {"normals": "analytic"}}, "voxels do not have"),
        ("conv3d-net", {"space_generator": {"widths": []}}, "widths must have 1 to 8 entries"),
        ("triplane-transformer", {"space_generator": {"width": 10, "n_heads": 4}}, "multiple of n_heads"),
        ("hyper-ingp", {"field": {"radius": 0.0}}, "radius"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GENERATORS[name][0](options)


@pytest.mark.parametrize("name", ["voxels", "written-decoder"])
def test_fields_that_need_tensors_of_prompts_are_no_free_parameters(name: str) -> None:
    with pytest.raises(ConfigError, match="needs tensors of each prompt"):
        FreeParameters({"field": name})
