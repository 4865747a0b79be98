import pytest
import torch

from triplaneturbo.diffusion import few_step_timesteps
from triplaneturbo.errors import ConfigError, UnknownNameError, WeightsError
from triplaneturbo.geometry.generator import TriplaneGenerator
from triplaneturbo.types import TextStates


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(12, 4, 8, 8, generator=generator)
    return noise, torch.full((12,), 749), torch.randn(2, 3, 12, generator=generator)


def states(text):
    """What an encoder would say, of which the generator reads the tokens."""
    return TextStates(tokens=text, pooled=text[:, 0], negative=text[:1], empty=text[:1])


def test_missing_weights_say_where_to_get_them(tmp_path):
    with pytest.raises(WeightsError, match=r"download_full\.py") as error:
        TriplaneGenerator({"pretrained_model_name_or_path": str(tmp_path / "nowhere")})
    assert "nowhere" in str(error.value)


def test_odd_output_and_unknown_options_are_errors():
    with pytest.raises(ConfigError, match="even"):
        TriplaneGenerator({"output_dim": 7})
    with pytest.raises(UnknownNameError, match="output_dim"):
        TriplaneGenerator({"output_dims": 8})


def test_only_trained_parameters_are_saved_and_loading_is_strict(build):
    geometry, other = build(), build(generator={"self_attention": "separate_planes"})
    trained = {name for name, p in geometry.named_parameters() if p.requires_grad}
    state = geometry.state_dict()
    assert set(state) == trained | {"bbox"}
    copied = build()
    for parameter in copied.parameters():
        parameter.data.zero_() if parameter.requires_grad else None
    copied.load_state_dict(state)
    torch.testing.assert_close(copied.state_dict(), state, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        copied.load_state_dict({name: state[name] for name in list(state)[1:]})


def test_full_training_trains_and_saves_everything(build):
    geometry = build(generator={"full": True})
    assert all(p.requires_grad for p in geometry.parameters())
    assert "space_generator.unet.conv_in.weight" in geometry.state_dict()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_is_ddim_with_eta_zero(build, inputs, prediction):
    """Against the update written out in float64 with a linear stand-in for the network."""
    noise, _, text = inputs
    generator = build().space_generator
    object.__setattr__(generator.schedule, "prediction_type", prediction)
    generator.denoise = lambda noisy, t, text: 0.3 * noisy + 1e-4 * t.view(-1, 1, 1, 1)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    product = torch.cumprod(1 - betas, 0)
    state = noise.double()
    times = few_step_timesteps(4)
    for i, t in enumerate(times):
        alpha, sigma = product[t].sqrt(), (1 - product[t]).sqrt()
        output = 0.3 * state + 1e-4 * t
        if prediction == "epsilon":
            clean, eps = (state - sigma * output) / alpha, output
        else:
            clean, eps = alpha * state - sigma * output, sigma * state + alpha * output
        if i < 3:
            following = product[times[i + 1]]
            state = following.sqrt() * clean + (1 - following).sqrt() * eps
    torch.testing.assert_close(generator.sample(text, noise, 4).double(), clean, rtol=1e-5, atol=1e-5)


def test_generate_decodes_the_last_clean_estimate_without_gradient(build, inputs):
    noise, _, text = inputs
    geometry = build()
    planes = geometry.generate(states(text), noise, 2).tensors["planes"]
    assert planes.shape == (2, 6, 4, 16, 16)
    assert not planes.requires_grad
    torch.testing.assert_close(
        planes, geometry.decode(geometry.space_generator.sample(text, noise, 2)).tensors["planes"]
    )


def test_step_of_distillation_noises_and_predicts(build, inputs):
    clean, t, text = inputs
    generator = build().space_generator
    noise = torch.randn_like(clean)
    alpha, sigma = generator.schedule.alpha_sigma(t, clean)
    noisy = alpha * clean + sigma * noise
    expected = (noisy - sigma * generator.denoise(noisy, t, text)) / alpha
    torch.testing.assert_close(generator.prd_step(clean, noise, t, text), expected)


def test_prompts_do_not_see_each_other_and_text_may_differ_by_plane(build, inputs):
    noise, t, text = inputs
    generator = build().space_generator
    with torch.no_grad():
        both = generator.denoise(noise, t, text)
        second = generator.denoise(noise[6:], t[6:], text[1:])
        per_plane = generator.denoise(noise, t, text.unsqueeze(1).expand(-1, 6, -1, -1))
        changed = text.unsqueeze(1).repeat(1, 6, 1, 1)
        changed[:, 2] = 0
        other = generator.denoise(noise, t, changed)
    torch.testing.assert_close(both[6:], second, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both, per_plane)
    assert not torch.allclose(both, other, atol=1e-4)


def test_prompt_bias_shifts_the_text_of_a_plane(build, inputs):
    noise, t, _ = inputs
    generator = build(generator={"prompt_bias": True}).space_generator
    text = torch.randn(2, 77, 12)
    bias = torch.randn(6, 77, 12)
    generator.prompt_bias.data.copy_(bias)
    expected = build().space_generator.denoise(noise, t, text.unsqueeze(1) + bias)
    torch.testing.assert_close(generator.denoise(noise, t, text), expected)


def test_split_decoding_keeps_the_first_half_for_shape_and_the_second_for_colour(build, inputs):
    whole, split = build(split_channels=False), build()
    split.space_generator.load_state_dict(whole.space_generator.state_dict())
    latents = inputs[0]
    planes = whole.decode(latents).tensors["planes"]
    assert planes.shape == (2, 6, 8, 16, 16)
    expected = torch.cat((planes[:, :3, :4], planes[:, 3:, 4:]), dim=1)
    torch.testing.assert_close(split.decode(latents).tensors["planes"], expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_all_adapters_and_checkpointing_does_not_change_them(build, inputs):
    noise, t, text = inputs
    gradients = []
    for checkpointing in (False, True):
        geometry = build(generator={"gradient_checkpoint": checkpointing})
        geometry.space_generator.train()
        geometry.decode(geometry.space_generator.predict_clean(noise, t, text)).tensors[
            "planes"
        ].square().mean().backward()
        gradients.append({n: p.grad for n, p in geometry.space_generator.named_parameters() if p.requires_grad})
    assert all(g is not None and g.any() for g in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_low_precision_keeps_trained_parameters_and_results_in_float32(build, inputs):
    noise, t, text = inputs
    exact, short = build(), build(generator={"network_dtype": "bfloat16"})
    output = short.space_generator.denoise(noise, t, text)
    planes = short.decode(noise).tensors["planes"]
    assert output.dtype == planes.dtype == torch.float32
    generator = short.space_generator
    assert generator.unet.conv_in.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in short.parameters() if p.requires_grad)
    reference = exact.space_generator.denoise(noise, t, text)
    assert (output - reference).norm() / reference.norm() < 0.03
    output.square().mean().backward()
    assert all(p.grad.isfinite().all() for n, p in generator.unet.named_parameters() if p.requires_grad)


def test_last_layers_are_not_rounded_to_low_precision(build, inputs):
    """Numbers that a convolution in bfloat16 gave would all be bfloat16 numbers."""
    noise, t, text = inputs
    geometry = build(generator={"network_dtype": "bfloat16"})
    with torch.no_grad():
        results = geometry.space_generator.denoise(noise, t, text), geometry.decode(noise).tensors["planes"]
    for result in results:
        assert (result == result.bfloat16().float()).float().mean() < 0.1


def test_construction_on_the_meta_device_reads_the_folder_or_the_built_in_sizes(sd_folder):
    with torch.device("meta"):
        small = TriplaneGenerator({"pretrained_model_name_or_path": str(sd_folder)})
        large = TriplaneGenerator({"pretrained_model_name_or_path": "nowhere"})
    assert small.unet.config.cross_attention_dim == 12
    assert large.unet.config.cross_attention_dim == 1024
    assert large.unet.conv_in.weight.is_meta
