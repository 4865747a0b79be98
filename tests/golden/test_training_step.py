"""A whole training step is judged so that a sample on a kink passes and a mistake does not (README.md)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families.training import build_system, compare_step, take_step
from golden_case import Case
from torch import Tensor
from workbench import Workbench

from triplaneturbo.systems.prd import ProgressiveRenderingDistillation

RECORDED = Path(__file__).parent / "data" / "x2_training_step_grads.npz"
PICTURES = ("comp_rgb", "comp_normal_cam_vis", "disparity")
Mistake = Callable[[ProgressiveRenderingDistillation, pytest.MonkeyPatch], None]


def failures(found: dict[str, Tensor]) -> set[str]:
    """The names of what is not as recorded."""
    case = Case(RECORDED)
    compare_step(case, found)
    return {failure.partition(": error")[0] for failure in case.failures}


@pytest.fixture(scope="module")
def perturbed(workbench: Workbench) -> dict[str, Tensor]:
    """The step with every weight of the student moved by one unit in the last place, up or down."""
    case = Case(RECORDED)
    system = build_system(case, workbench)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in system.geometry.parameters():
            towards = torch.where(torch.rand(weight.shape, generator=generator) < 0.5, -torch.inf, torch.inf)
            weight.copy_(torch.nextafter(weight, towards))
    with pytest.MonkeyPatch.context() as patch:
        return take_step(case, system, patch)


def test_the_last_digit_of_the_weights_passes(perturbed: dict[str, Tensor]) -> None:
    assert not failures(perturbed)


@pytest.mark.parametrize(("n_pixels", "passes"), [(2, True), (3, False)])
def test_half_a_percent_of_the_pixels_may_turn(perturbed: dict[str, Tensor], n_pixels: int, passes: bool) -> None:
    name = "part1_comp_normal_cam_vis"
    picture = Case(RECORDED)[name].clone()  # 576 pixels, all as recorded: with some instructions one turns by itself
    picture.flatten(0, 2)[:n_pixels] = 1 - picture.flatten(0, 2)[:n_pixels].round()
    assert failures({**perturbed, name: picture}) == (set() if passes else {name})


def test_a_pixel_that_is_not_a_number_counts_as_turned(perturbed: dict[str, Tensor]) -> None:
    name = "part0_disparity"
    picture = perturbed[name].detach().clone()
    picture.flatten()[:3] = torch.nan
    assert failures({**perturbed, name: picture}) == {name}


@pytest.mark.parametrize(("share", "passes"), [(0.45, True), (0.55, False)])
def test_the_gradients_of_half_of_the_tensors_may_move_a_little(
    perturbed: dict[str, Tensor], share: float, passes: bool
) -> None:
    norms = perturbed["grad_norms"].clone()
    norms[: int(share * len(norms))] *= 1.05
    assert failures({**perturbed, "grad_norms": norms}) == (set() if passes else {"grad_norms"})


def test_one_lost_gradient_is_seen(perturbed: dict[str, Tensor]) -> None:
    norms = perturbed["grad_norms"].clone()
    norms[500] = 0
    assert failures({**perturbed, "grad_norms": norms}) == {"grad_norms: worst"}


@pytest.mark.parametrize("name", ["grad_proj", "grad:"])
def test_gradients_of_the_other_sign_are_seen(perturbed: dict[str, Tensor], name: str) -> None:
    turned = {key: -value for key, value in perturbed.items() if key.startswith(name) and key != "grad_proj: scale"}
    assert turned.keys() <= {failure.removesuffix(": together") for failure in failures(perturbed | turned)}


def test_outputs_that_a_step_does_not_carry_are_not_asked_for(perturbed: dict[str, Tensor]) -> None:
    for name in perturbed:
        case = Case(RECORDED)
        case.arrays.pop(name, None)
        compare_step(case, perturbed)
        assert not case.failures
        assert name not in case.judged


def lora_zeroed(system: ProgressiveRenderingDistillation, patch: pytest.MonkeyPatch) -> None:
    """Of eight that were tried the one that changes least."""
    torch.nn.init.zeros_(system.geometry.get_parameter("space_generator.unet.down_blocks.3.resnets.1.conv1.down"))


def timestep_off_by_one(system: ProgressiveRenderingDistillation, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(system, "timesteps", [t - 1 for t in system.timesteps])


def planes_swapped(system: ProgressiveRenderingDistillation, patch: pytest.MonkeyPatch) -> None:
    planes = system.geometry._planes
    patch.setattr(system.geometry, "_planes", lambda latents: planes(latents)[:, [1, 0, 2, 3, 4, 5]])


def teacher_missing(system: ProgressiveRenderingDistillation, patch: pytest.MonkeyPatch) -> None:
    del system.guidance.teachers["richdreamer"]


def loss_weight_doubled(system: ProgressiveRenderingDistillation, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(system.objectives["volume"], "score", lambda progress: 2.0)


@pytest.mark.parametrize(
    ("mistake", "changes_pictures"),
    [
        (lora_zeroed, True),
        (timestep_off_by_one, True),
        (planes_swapped, True),
        (teacher_missing, False),
        (loss_weight_doubled, False),
    ],
)
def test_mistakes_are_seen(
    mistake: Mistake, changes_pictures: bool, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(RECORDED)
    system = build_system(case, workbench)
    mistake(system, monkeypatch)
    seen = failures(take_step(case, system, monkeypatch))
    assert {"grad_norms", "grad_proj", "grad_proj: together"} <= seen
    if changes_pictures:
        assert {f"part{part}_{name}" for part in (0, 1) for name in PICTURES} <= seen
