"""Text and noise to six feature planes, and the scene they make."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.bounds import Share
from triplaneturbo.draws import Draws
from triplaneturbo.geometry.base import Geometry
from triplaneturbo.geometry.generator import TriplaneGenerator
from triplaneturbo.graphs import GraphReplay, TrainingReplay
from triplaneturbo.performance import graphs_run_on
from triplaneturbo.registry import register
from triplaneturbo.scenes import FieldScene, PlaneField
from triplaneturbo.types import TextStates


@register("few-step-triplanes")
class FewStepTriplanes(Geometry):
    """Six planes (xy, xz, yz for shape, the same for colour) from a few-step diffusion generator, and their field.

    `space_generator` is the generator, with its latents and its denoising; `field` reads the planes.
    """

    @dataclass(kw_only=True)
    class Config(Geometry.Config):
        space_generator: TriplaneGenerator.Config = field(default_factory=TriplaneGenerator.Config)
        """The diffusion network."""
        split_channels: bool = False
        """Shape planes keep the first half of the decoder's channels, colour planes the second."""
        field: PlaneField.Config = field(default_factory=PlaneField.Config)
        """What is read from the planes; training_resolution is also that of exports."""
        smallest_component: Share = 0.0
        """Components of exported meshes with less than this share of the largest one's faces are dropped."""

    field: PlaneField
    bbox: Tensor
    """Two corners of the cube."""

    def configure(self) -> None:
        cfg = self.cfg
        self.space_generator = TriplaneGenerator(cfg.space_generator)
        self.field = PlaneField(cfg.field, channels=cfg.space_generator.output_dim // (2 if cfg.split_channels else 1))
        self.resolution, self.smallest_component = cfg.field.training_resolution, cfg.smallest_component
        self.merged = False
        self._forget_recordings()
        self.register_buffer("bbox", torch.tensor([[-cfg.field.radius] * 3, [cfg.field.radius] * 3]))

    # From latents to scenes

    def decode(self, latents: Float[Tensor, "N c h w"]) -> FieldScene:
        """The scene that the decoder makes of clean latents; differentiable."""
        return self._scene(self._planes(latents))

    def prd_round(
        self,
        previous_clean: Float[Tensor, "N c h w"],
        noise: Float[Tensor, "N c h w"],
        t: Int[Tensor, " N"],
        text: Float[Tensor, "B L E"],
    ) -> tuple[Float[Tensor, "N c h w"], FieldScene]:
        """A round of progressive rendering distillation: the clean latents, without gradient, and their scene.

        Differentiable in the parameters. On CUDA the round and its way back are recorded as graphs on the first call of
        a shape (`graphs.TrainingReplay`): go backward before the next call.
        """

        arguments = previous_clean, noise, t, text
        trained = [p for p in self.space_generator.parameters() if p.requires_grad]
        recorded = graphs_run_on(noise.device) and torch.is_grad_enabled() and trained
        if not recorded or self.cfg.space_generator.gradient_checkpoint:
            clean = self.space_generator.prd_step(*arguments)
            return clean.detach(), self.decode(clean)

        def round_(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            latents = self.space_generator.prd_step(*arguments)
            return latents, self._planes(latents)

        clean, planes = self._training_replay(round_, arguments, trained, key=self.training)
        return clean.detach(), self._scene(planes)

    def scene(self, condition: TextStates, draws: Draws | None = None) -> FieldScene:
        """Raises NotImplementedError: it is trained round by round, by progressive rendering distillation."""
        raise NotImplementedError("few-step-triplanes are trained by progressive-rendering-distillation")

    @torch.no_grad()
    def generate(self, condition: TextStates, noise: Float[Tensor, "N c h w"], n_steps: int = 4) -> FieldScene:
        """The scene after `n_steps` of DDIM from `noise`, without gradients.

        Merged and on CUDA the whole computation is recorded as a graph on the first call of a shape and replayed by
        the next: the generator launches 10 000 kernels, more than the host can issue while the device runs them.
        """

        def planes(text: Tensor, noise: Tensor) -> Tensor:
            return self._planes(self.space_generator.sample(text, noise, n_steps))

        if not (self.merged and graphs_run_on(noise.device)):
            return self._scene(planes(condition.tokens, noise))
        return self._scene(self._replay(planes, (condition.tokens, noise), key=n_steps))

    def _planes(self, latents: Tensor) -> Float[Tensor, "B 6 C H W"]:
        return self.space_generator.decode(latents, split=self.cfg.split_channels)

    def _scene(self, planes: Tensor) -> FieldScene:
        return FieldScene(self.field, {"planes": planes})

    def merge(self) -> None:
        """Fold the adapters into the weights for inference; see `TriplaneGenerator.merge`."""
        self.space_generator.merge()
        self.merged = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FewStepTriplanes":
        """Moving weights leaves recordings with their old addresses."""
        self._forget_recordings()
        return super()._apply(fn, recurse)

    def _forget_recordings(self) -> None:
        self._replay, self._training_replay = GraphReplay(), TrainingReplay()
