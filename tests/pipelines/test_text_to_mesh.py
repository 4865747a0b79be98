import json
import shutil

import pytest
import torch
import yaml
from tiny_student import geometry_options, training_options, write_pipeline

from triplaneturbo import TextToMeshPipeline
from triplaneturbo.errors import ConfigError, EmptyFieldError, WeightsError, WriteError
from triplaneturbo.exporters.files import read_mesh
from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.legacy.state_dicts import to_original
from triplaneturbo.types import TextStates
from triplaneturbo.weights.files import load_tensors, save_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_world):
    return write_pipeline(tmp_path_factory.mktemp("pipeline"), tiny_world / "sd")


@pytest.fixture(scope="module")
def pipe(folder):
    return TextToMeshPipeline.from_pretrained(folder, "cpu")


def planes(output):
    return output.scene.tensors["planes"]


def test_one_prompt_to_a_file(pipe, tmp_path):
    output = pipe("a red cube", seed=0)
    path = output.export(tmp_path / "cube.glb")
    mesh = read_mesh(path)
    assert torch.equal(mesh.faces, output.meshes[0].faces)
    assert planes(output).shape == (1, 6, 4, 16, 16)
    assert 0 <= mesh.colors.min() <= mesh.colors.max() <= 1


def test_a_batch_gives_the_same_meshes_as_single_calls(pipe):
    prompts = ["a red cube", "a blue torus"]
    batch = pipe(prompts, seed=[3, 4])
    for i, (prompt, seed) in enumerate(zip(prompts, (3, 4), strict=True)):
        torch.testing.assert_close(planes(pipe(prompt, seed=seed))[0], planes(batch)[i], atol=1e-5, rtol=1e-5)


def test_prompt_seed_and_steps_matter(pipe):
    first = planes(pipe("a red cube", seed=0))
    assert torch.equal(planes(pipe("a red cube", seed=0)), first)
    for other in (
        pipe("a blue cube", seed=0),
        pipe("a red cube", seed=1),
        pipe("a red cube", seed=0, num_inference_steps=2),
    ):
        assert (planes(other) - first).abs().max() > 1e-3


def test_resolution(pipe):
    coarse, fine = (pipe("a red cube", resolution=r).meshes[0] for r in (12, 24))
    assert len(fine.vertices) > 3 * len(coarse.vertices)


def test_merged_adapters_give_what_the_training_modules_give(pipe, folder):
    geometry = FewStepTriplanes(geometry_options(pipe.base))
    state = load_tensors(folder / "student.safetensors")
    geometry.load_state_dict({name.removeprefix("geometry."): tensor for name, tensor in state.items()})
    tokens, pooled = pipe.text_encoder.encode(["a red cube"])
    condition = TextStates(tokens, pooled, tokens[:1], tokens[:1])
    expected = geometry.generate(condition, pipe._noise([0]), 4).tensors["planes"]
    torch.testing.assert_close(pipe.generate(["a red cube"]).tensors["planes"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("copy_base", [True, False])
def test_saved_and_loaded_again(pipe, tmp_path, copy_base):
    pipe.save_pretrained(tmp_path / "a", copy_base=copy_base)
    assert (tmp_path / "a" / "base").is_symlink() != copy_base
    assert "pretrained_model_name_or_path" not in (tmp_path / "a/pipeline.json").read_text()  # no path of this machine
    again = TextToMeshPipeline.from_pretrained(tmp_path / "a", "cpu")
    assert torch.equal(planes(again("a red cube")), planes(pipe("a red cube")))
    again.save_pretrained(tmp_path / "a", copy_base=copy_base)
    assert torch.equal(
        planes(TextToMeshPipeline.from_pretrained(tmp_path / "a", "cpu")("a cube")),
        planes(pipe("a cube")),
    )


def test_from_a_training_run(pipe, folder, tmp_path):
    """A checkpoint holds more than the pipeline needs; the configuration gives steps and sizes."""
    experiment = training_options(pipe.base)
    (tmp_path / "parsed.yaml").write_text(yaml.safe_dump(experiment))
    state = {**load_tensors(folder / "student.safetensors"), "background.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 0}, tmp_path / "last.ckpt")
    trained = TextToMeshPipeline.from_training(tmp_path / "parsed.yaml", tmp_path / "last.ckpt", "cpu")
    assert torch.equal(planes(trained("a red cube")), planes(pipe("a red cube")))
    assert (trained.config.resolution, trained.config.num_inference_steps) == (16, 4)
    experiment["system"] |= {"export_resolution": 24, "inference_steps": 2}
    (tmp_path / "parsed.yaml").write_text(yaml.safe_dump(experiment))
    finer = TextToMeshPipeline.from_training(tmp_path / "parsed.yaml", tmp_path / "last.ckpt", "cpu")
    assert (finer.config.resolution, finer.config.num_inference_steps) == (24, 2)


@pytest.mark.parametrize(("dialect", "steps"), [("published", 50), ("ours", 4)])
def test_a_training_run_that_does_not_say_how_many_steps_has_those_of_its_system(
    pipe, folder, tmp_path, dialect, steps
):
    """As an export of this run, which builds the system."""
    experiment = training_options(pipe.base)
    del experiment["system"]["inference_steps"]
    if dialect == "published":
        sd = {"pretrained_model_name_or_path": str(pipe.base)}
        experiment = {
            "data_type": "multiview-multiprompt-dualrenderer-multistep-datamodule-v2",
            "data": {
                "prompts": ["a red cube"],
                "condition_processor_type": "stable-diffusion-multi-prompt-processor-callable",
                "condition_processor": sd,
            },
            "system_type": "multiprompt-dual-renderer-multistep-generator-system",
            "system": {
                "num_steps_training": 4,
                "geometry_type": "few-step-triplane-dual-stable-diffusion",
                "geometry": PUBLISHED_GEOMETRY | {"space_generator_config": PUBLISHED_GENERATOR | sd},
                "renderer_type": "generative-space-mesh-rasterize-renderer",
            },
        }
    (tmp_path / "parsed.yaml").write_text(yaml.safe_dump(experiment))
    trained = TextToMeshPipeline.from_training(tmp_path / "parsed.yaml", folder / "student.safetensors", "cpu")
    assert trained.config.num_inference_steps == steps


# The geometry of tiny_student.py in the published names.
PUBLISHED_GENERATOR = {
    "training_type": "self_lora_rank_2-cross_lora_rank_2-locon_rank_2",
    "output_dim": 8,
    "cross_lora_type": "vanilla",
    "locon_type": "vanilla_v1",
    "vae_attn_type": "basic",
}
PUBLISHED_GEOMETRY = {
    "sdf_bias": "sphere",
    "sdf_bias_params": 0.5,
    "split_channels": "v1",
    "isosurface_resolution": 16,
}


@pytest.mark.parametrize(("compat", "unit", "keeps"), [("right", "training cell", True), ("original", "cell", False)])
def test_folders_of_the_first_version_are_read(pipe, folder, tmp_path, compat, unit, keeps):
    """Their pipeline.json has the published option names, and `compat`."""
    content = json.loads((folder / "pipeline.json").read_text())
    del content["keep_end_token"]
    content |= {"geometry": PUBLISHED_GEOMETRY | {"space_generator_config": PUBLISHED_GENERATOR}, "compat": compat}
    content["geometry"] = content["geometry"] | {"compat": compat}
    content["base"] = "base"
    (tmp_path / "pipeline.json").write_text(json.dumps(content))
    (tmp_path / "base").symlink_to(pipe.base)
    state = load_tensors(folder / "student.safetensors")
    earlier = {name.replace("geometry.field.", "geometry."): tensor for name, tensor in state.items()}
    assert earlier.keys() != state.keys()
    save_tensors(tmp_path / "student.safetensors", earlier)
    old = TextToMeshPipeline.from_pretrained(tmp_path, "cpu")
    assert torch.equal(planes(old("a red cube")), planes(pipe("a red cube")))
    assert old.geometry.field.cfg.deformation_unit == unit
    assert old.text_encoder.keep_end_token == keeps


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("system", {"geometry": {"type": "free-parameters"}}, "makes meshes with few-step-triplanes and unlit"),
        ("data", {"conditions": {}}, "reads prompts with clip-text"),
    ],
)
def test_a_training_of_something_else_is_no_pipeline(pipe, folder, tmp_path, part, options, message):
    experiment = training_options(pipe.base)
    experiment[part] |= options
    experiment["system"]["type"] = "scene-distillation"
    (tmp_path / "parsed.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.raises(ConfigError, match=message):
        TextToMeshPipeline.from_training(tmp_path / "parsed.yaml", folder / "student.safetensors", "cpu")


def test_averaged_weights_are_preferred(pipe, folder, tmp_path):
    state = load_tensors(folder / "student.safetensors")
    broken = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    checkpoint = {"state_dict": {**broken, "geometry.bbox": state["geometry.bbox"]}, "ema": state}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    averaged = TextToMeshPipeline.from_pretrained(folder, "cpu", weights=tmp_path / "last.ckpt")
    assert torch.equal(planes(averaged("a red cube")), planes(pipe("a red cube")))


def test_files_of_the_original_are_renamed(pipe, folder, tmp_path):
    state = load_tensors(folder / "student.safetensors")
    own = {name.removeprefix("geometry."): tensor for name, tensor in state.items()}
    released = {f"geometry.{name}": tensor.clone() for name, tensor in to_original(own).items()}
    torch.save({"state_dict": released, "epoch": 0, "global_step": 0}, tmp_path / "released.pth")
    original = TextToMeshPipeline.from_pretrained(folder, "cpu", weights=tmp_path / "released.pth")
    assert torch.equal(planes(original("a red cube")), planes(pipe("a red cube")))
    assert original.geometry.field.cfg.deformation_unit == "cell"
    original.save_pretrained(tmp_path / "saved", copy_base=False)
    again = TextToMeshPipeline.from_pretrained(tmp_path / "saved", "cpu")
    assert again.geometry.field.cfg.deformation_unit == "cell"
    assert again.text_encoder.keep_end_token  # only the deformation is the file's
    assert original.text_encoder.keep_end_token
    assert pipe.geometry.field.cfg.deformation_unit == "training cell"


def test_several_meshes_go_to_folders(pipe, tmp_path):
    output = pipe(["a red cube", "a blue cone"])
    with pytest.raises(ValueError, match="2 meshes do not fit into one file; use export_all"):
        output.export(tmp_path / "a.glb")
    twice = pipe(["a red cube", "a red cube"], seed=[0, 1]).export_all(tmp_path / "seeds", turntable_views=0)
    assert [path.parent.name for path in twice] == ["a_red_cube", "a_red_cube.2"]
    assert twice[0].read_bytes() != twice[1].read_bytes()
    with pytest.raises(WriteError, match=r"holds one of 'a red cube' by seed 0 .*, not of 'a red cube' by seed 1"):
        pipe("a red cube", seed=1).export_all(tmp_path / "seeds")
    assert pipe("a red cube", seed=1).export_all(tmp_path / "seeds", overwrite=True) == twice[:1]
    paths = output.export_all(tmp_path, fmt="obj", turntable_size=16)
    assert paths == [tmp_path / "a_red_cube" / "model.obj", tmp_path / "a_blue_cone" / "model.obj"]


def test_mistakes_in_calls(pipe):
    with pytest.raises(ValueError, match="there is no prompt"):
        pipe([])
    for prompt, message in (("  ", "not empty"), ("caf\udce9", "not valid Unicode")):
        with pytest.raises(ValueError, match=message):
            pipe(prompt)
    with pytest.raises(ValueError, match="3 seeds do not fit 2 prompts"):
        pipe(["a cube", "a cone"], seed=[0, 1, 2])


@pytest.mark.parametrize(("bias", "side"), [(5.0, "outside"), (-5.0, "inside")])
def test_a_field_without_a_surface_is_an_error(folder, tmp_path, bias, side):
    config = json.loads((folder / "pipeline.json").read_text())
    config["geometry"]["field"] |= {"bias": bias, "bias_size": None}
    (tmp_path / "pipeline.json").write_text(json.dumps(config))
    shutil.copy(folder / "student.safetensors", tmp_path)
    (tmp_path / "base").symlink_to((folder / "base").resolve())
    with pytest.raises(EmptyFieldError, match=f"'a red cube' has no surface.*{side}"):
        TextToMeshPipeline.from_pretrained(tmp_path, "cpu")("a red cube")


@pytest.mark.parametrize("option", ["base", "weights"])
@pytest.mark.parametrize("path", ["/etc", "../elsewhere", "a/../../elsewhere"])
def test_pipeline_json_cannot_point_outside_its_folder(folder, tmp_path, option, path):
    config = json.loads((folder / "pipeline.json").read_text()) | {option: path}
    (tmp_path / "pipeline.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=f"pipeline.json.{option} must be a name or path that stays in its folder"):
        TextToMeshPipeline.from_pretrained(tmp_path, "cpu")


def test_a_link_takes_no_folder_away(pipe, tmp_path):
    (tmp_path / "base").mkdir()
    with pytest.raises(WriteError, match="base is there and is not"):
        pipe.save_pretrained(tmp_path, copy_base=False)


def test_weights_with_nan_are_an_error(folder, tmp_path):
    state = load_tensors(folder / "student.safetensors")
    state["geometry.field.sdf_network.layers.0.weight"][0, 0] = float("nan")
    save_tensors(tmp_path / "nan.safetensors", state)
    pipe = TextToMeshPipeline.from_pretrained(folder, "cpu", weights=tmp_path / "nan.safetensors")
    with pytest.raises(EmptyFieldError, match="'a red cube' is not finite"):
        pipe("a red cube")


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(WeightsError, match=r"has no pipeline\.json"):
        TextToMeshPipeline.from_pretrained(tmp_path)
    (tmp_path / "pipeline.json").write_text('{"bse": "x"}')
    with pytest.raises(WeightsError, match="did you mean 'base'"):
        TextToMeshPipeline.from_pretrained(tmp_path)
    state = load_tensors(folder / "student.safetensors")
    del state["geometry.field.sdf_network.layers.0.weight"]
    save_tensors(tmp_path / "short.safetensors", state)
    with pytest.raises(WeightsError, match=r"1 missing \(geometry\.field\.sdf_network\.layers\.0\.weight\)"):
        TextToMeshPipeline.from_pretrained(folder, weights=tmp_path / "short.safetensors")


def test_a_tensor_that_no_mesh_depends_on_is_refused_in_a_student(folder, tmp_path):
    state = {**load_tensors(folder / "student.safetensors"), "background.weight": torch.zeros(2)}
    save_tensors(tmp_path / "student.safetensors", state)
    with pytest.raises(WeightsError, match=r"student\.safetensors.*1 unexpected \(background\.weight\)"):
        TextToMeshPipeline.from_pretrained(folder, "cpu", weights=tmp_path / "student.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\0" * 99, b"\xff\xfe", b"[1]", b'{"geometry": {"sdf": 1}}', b"[" * 200_000, b"<html>"]
)
def test_a_damaged_pipeline_file_is_named(tmp_path, content):
    (tmp_path / "pipeline.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"pipeline\.json cannot be used"):
        TextToMeshPipeline.from_pretrained(tmp_path)
