from dataclasses import dataclass, replace

import pytest
import torch
from analytic_scenes import cameras, solids, sphere_sdf, surroundings

from triplaneturbo.base import build
from triplaneturbo.cameras import ray_directions
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.renderers.patch import PatchDraws, PatchRenderer
from triplaneturbo.renderers.shading import over
from triplaneturbo.renderers.volume import VolumeRenderer

TEXT = torch.zeros(1, 4)
PICTURES = ("rgb", "normal", "normal_white", "disparity", "opacity", "depth")
BASE = {"num_samples_per_ray": 8, "num_samples_per_ray_importance": 12}


def renderer(randomized=False, **options):
    options = {"patch_size": 5, "global_downsample": 3, **options}
    base = {"type": "volume", **BASE, "randomized": randomized}
    return PatchRenderer({"base_renderer": base, **options}, **surroundings())


def ball(*sizes):
    return solids(sphere_sdf, *sizes)


def draws(*samples):
    return Draws(seed=0, samples=samples, device=torch.device("cpu"))


@register("rays-of-a-stranger")
class RaysOfAStranger(VolumeRenderer):
    @dataclass(kw_only=True)
    class Config(VolumeRenderer.Config):
        gain: float = 1.0


def test_the_wrapped_renderer_is_any_with_its_own_options_and_no_others():
    wrapped = {"type": "rays-of-a-stranger", "gain": 3.0, "radius": 2.0}
    subject = build("renderer", {"type": "patch", "base_renderer": wrapped}, **surroundings())
    assert isinstance(subject.base_renderer, RaysOfAStranger)
    assert (subject.base_renderer.cfg.gain, subject.base_renderer.cfg.radius) == (3.0, 2.0)
    assert subject.base_renderer.material is subject.material
    with pytest.raises(ConfigError, match=r"set base_renderer\.radius"):
        build("renderer", {"type": "patch", "base_renderer": wrapped, "radius": 2.0}, **surroundings())
    with pytest.raises(ConfigError, match=r"base_renderer has no option 'gian'; did you mean 'gain'"):
        build("renderer", {"type": "patch", "base_renderer": {**wrapped, "gian": 1}}, **surroundings())


def test_patch_is_sharp_and_the_rest_is_the_enlarged_coarse_picture():
    subject, view, scene = renderer(), cameras(0.0, 90.0), ball(0.5)
    directions = ray_directions(view, 12, 15)
    views = subject.render(scene, view, TEXT, directions, PatchDraws(((4, 7),)))
    sharp = subject.base_renderer.render_rays(scene, view, TEXT, directions)
    # Factor 3, centre of every block: what bilinear reduction without antialiasing reads.
    coarse = subject.base_renderer.render_rays(scene, view, TEXT, directions[:, 1::3, 1::3])
    inside = torch.zeros(12, 15, dtype=torch.bool)
    inside[4:9, 7:12] = True
    centres = torch.zeros_like(inside)
    centres[1::3, 1::3] = True
    for name in PICTURES:
        picture = getattr(views, name)
        torch.testing.assert_close(picture[:, inside], getattr(sharp, name)[:, inside])
        outside = ~inside[1::3, 1::3]
        expected = getattr(coarse, name)[:, outside]
        torch.testing.assert_close(picture[:, 1::3, 1::3][:, outside], expected, atol=1e-5, rtol=0)
    for name in ("z_variance", "comp_normal"):
        torch.testing.assert_close(views.extras[name][:, inside], sharp.extras[name][:, inside])
    assert views.extras["z_variance"].shape == (2, 12, 15, 1)
    assert len(views.extras["sdf_grad"]) == 2 * 4 * 5 * 21


def test_every_prompt_has_a_patch_of_its_own():
    subject, scene, corners = renderer(), ball(0.4, 0.6), ((4, 7), (0, 2))
    view = cameras(0.0, 90.0, 0.0, 90.0, n_view=2)
    directions = ray_directions(view, 12, 15)
    both = subject.render(scene, view, TEXT.expand(2, -1), directions, PatchDraws(corners))
    for prompt, corner in enumerate(corners):
        rows = slice(2 * prompt, 2 * prompt + 2)
        some = view.select(rows, 2)
        alone = subject.render(scene.prompt(prompt), some, TEXT, directions[rows], PatchDraws((corner,)))
        torch.testing.assert_close(both.depth[rows], alone.depth)


def test_both_passes_get_gradients_unless_the_coarse_one_is_detached():
    view = cameras(0.0)
    directions = ray_directions(view, 12, 12)
    mask = torch.zeros(1, 12, 12, 1)
    mask[:, 4:9, 4:9] = 1
    for detach in (False, True):
        scene, _ = ball(0.5).detached()
        size = scene.tensors["size"]
        views = renderer(global_detach=detach).render(scene, view, TEXT, directions, PatchDraws(((4, 4),)))
        (in_patch,) = torch.autograd.grad((views.depth * mask).sum(), size, retain_graph=True)
        assert in_patch.abs().sum() > 0
        rest = (over(views.depth, 1 - mask, views.depth.detach())).sum()
        (outside,) = torch.autograd.grad(rest, size)
        assert (outside.abs().sum() > 0) == (not detach)


def test_patch_place_depends_on_the_sample_alone():
    subject = renderer()
    corners = subject.draw(draws(*range(60)), 4, (20, 30)).corners
    assert corners[3:5] == subject.draw(draws(3, 4), 4, (20, 30)).corners
    assert {top for top, _ in corners} == set(range(15))
    assert min(left for _, left in corners) <= 2
    assert max(left for _, left in corners) in (22, 23, 24)


def test_jitter_of_both_passes_is_drawn_for_each_sample():
    subject = renderer(randomized=True)
    found = subject.draw(draws(3, 8), 4, (12, 15))
    assert found.coarse.proposal.shape == (2, 4 * 4 * 5)
    assert found.patch.fine.shape == (2, 4 * 25)
    assert not torch.equal(found.coarse.fine[:, :50], found.patch.fine[:, :50])
    views = subject(ball(0.5), cameras(0.0), TEXT, size=(12, 15), draws=draws(3))
    still = replace(subject.draw(draws(3), 1, (12, 15)), coarse=None, patch=None)
    directions = ray_directions(cameras(0.0), 12, 15)
    assert (views.rgb - subject.render(ball(0.5), cameras(0.0), TEXT, directions, still).rgb).abs().max() > 1e-4


def test_evaluation_renders_everything():
    subject = renderer().eval()
    arguments = ball(0.5), cameras(0.0), TEXT
    whole = subject.base_renderer(*arguments, size=(12, 12))
    torch.testing.assert_close(subject(*arguments, size=(12, 12)).rgb, whole.rgb)


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match="smaller than patch_size"):
        renderer()(ball(0.5), cameras(0.0), TEXT, size=(4, 12), draws=draws(0))
    with pytest.raises(ValueError, match="give draws"):
        renderer()(ball(0.5), cameras(0.0), TEXT, size=(12, 12))
    with pytest.raises(ConfigError, match=r"global_downsample must be in \[1, 1024\]"):
        renderer(global_downsample=0)
    with pytest.raises(ConfigError, match="single rays"):
        PatchRenderer({"base_renderer": "mesh"}, **surroundings())
