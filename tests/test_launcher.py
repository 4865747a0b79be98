"""From the command line to a trainer, with a toy system and with the whole method in miniature."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from miniature import PROMPTS, write_configuration

import launch
from triplaneturbo import TextToMeshPipeline
from triplaneturbo.base import Chosen, Component
from triplaneturbo.config import ExperimentConfig
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.exporters.files import read_mesh
from triplaneturbo.exporters.origin import read_origin
from triplaneturbo.extensions import import_extensions
from triplaneturbo.launcher import Launch, count_processes, read_experiment, trainer_options
from triplaneturbo.ops import backends
from triplaneturbo.ops.backends import Backends
from triplaneturbo.weights.files import save_checkpoint

ROOT = Path(__file__).parents[1]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tb_logs" not in p.parts)


def test_what_does_an_operation_is_what_the_configuration_says(toy, capsys, monkeypatch):
    monkeypatch.setattr(backends, "_current", Backends())
    monkeypatch.setattr(backends, "loading_problem", lambda name: f"{name} is not installed (pip install {name})")
    assert launch.main(["--config", str(toy), "--train", "backends.rasterizer=nvdiffrast"]) == 2
    assert "backends.rasterizer=nvdiffrast cannot be used: nvdiffrast is not installed" in capsys.readouterr().err
    assert launch.main(["--config", str(toy), "--train", "backends={hashgrid: torch, allow_noncommercial: true}"]) == 0
    assert backends.current() == Backends(hashgrid="torch", allow_noncommercial=True)


def test_trains_a_plain_lightning_module(toy, tmp_path):
    assert launch.main(["--config", str(toy), "--train", "data.size=5"]) == 0
    trial = tmp_path / "out/toy/t"
    assert files(trial) == [
        "ckpts/epoch=0-step=4.ckpt",
        "ckpts/epoch=0-step=6.ckpt",
        "ckpts/last.ckpt",
        "cmd.txt",
        "configs/life-001/cmd.txt",
        "configs/life-001/parsed.yaml",
        "configs/life-001/raw.yaml",
        "configs/parsed.yaml",
        "configs/raw.yaml",
        "losses.jsonl",
    ]
    assert yaml.safe_load((trial / "configs/parsed.yaml").read_text())["data"] == {
        "type": "toy-data",
        "size": 5,
        "seed": -1,
    }
    assert [json.loads(line)["step"] for line in (trial / "losses.jsonl").read_text().splitlines()] == [1, 3, 5]


def test_a_finished_run_can_be_continued(toy, tmp_path):
    assert launch.main(["--config", str(toy), "--train"]) == 0
    assert launch.main(["--config", str(toy), "--train", "resume=auto", "trainer.max_steps=8"]) == 0
    assert "ckpts/epoch=0-step=8.ckpt" in files(tmp_path / "out/toy/t")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system.lrr=1", "'lr'"),
        ("sytem.lr=1", "'system'"),
        ("system_type=toy-sistem", "toy-system"),
        ("system.type=toy-data", "which is one of data; wanted is a system"),
        ("trainer.max_step=3", "'max_steps'"),
        ("trainer.logger=false", "decided by the launcher"),
        ("resume=nowhere.ckpt", "nowhere.ckpt"),
        ("exp_root_dir=/dev/null", "cannot create the folder /dev/null"),
        ("backends.isosurfaces=diso", "'isosurface'"),
        ("backends.isosurface=nvdiffrast", "'diso'"),
    ],
)
def test_errors_of_the_user_are_one_message(toy, capsys, override, message):
    assert launch.main(["--config", str(toy), "--train", override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system.guidance.mv_wieght=1", "system.guidance has no option 'mv_wieght'"),
        ("system.guidance.sd_weight=[0,1]", "stable_diffusion.weight: a schedule of 2 entries"),
        ("system.loss.lambda_asd=[a,b,c]", "system.losses.mesh.score: cannot read"),
        ("system.renderer_2nd.base_renderer.inv_std=high", "system.renderers.volume.base_renderer.inv_std"),
        ("system.renderer_2nd.base_renderer.inv_std=high", "(command line: system.renderer_2nd.base_renderer.inv_std"),
        ("system.geometry.rotate_planes=v9", "system.geometry.rotate_planes is 'v9'; allowed: 'v1', 'v2'"),
        ("system.geometry.isosurface_resolution=many", "must be of type int, not 'many'"),
        ("data.guidance_processor.negative_promt=x", "data.conditions.first has no option"),
        ("system.exporter.save_name=../up", "save_name"),
        ("system.exporter_type=mesh-exportr", "did you mean"),
        ("system.export_resolution=1", "export_resolution must be in [2, 2048]"),
        ("trainer.max_steps=many", "trainer.max_steps must be of type int, not 'many'"),
        ("trainer.devices=3x", "trainer.devices must be a number"),
        ("trainer.val_check_interval=0", "limit_val_batches=0"),
        ("resume=nowhere", "nowhere: there is no checkpoint"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(tiny_world, tmp_path, capsys, monkeypatch, override, message):
    monkeypatch.setattr("triplaneturbo.systems.scene.SceneSystem.assemble", lambda self: None)
    path = write_configuration(tiny_world, tmp_path)
    assert launch.main(["--config", str(path), "--train", override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [1,\nb: {", "is not valid YAML"),
        (b"name: ${tag", "no viable alternative"),
        (b"name: caf\xe9", "codec can't decode"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, capsys, content, message):
    (tmp_path / "bad.yaml").write_bytes(content)
    assert launch.main(["--config", str(tmp_path / "bad.yaml"), "--train"]) == 2
    assert launch.main(["--config", str(tmp_path), "--train"]) == 2
    said = capsys.readouterr().err
    assert f"launch.py: {tmp_path / 'bad.yaml'}" in said
    assert message in said
    assert f"{tmp_path} cannot be read" in said


def test_values_that_the_trainer_refuses(toy, capsys):
    for override, said in (
        ("trainer.precision=99", "trainer.precision is 99; allowed: 64, 32, 16"),
        ("trainer.precision=bf16-true trainer.accelerator=mps", "trainer.accelerator cannot be 'mps'"),
        ("trainer.accelerator=gpux", "trainer.accelerator cannot be 'gpux'"),
        ("trainer.accelerator=tpu", "trainer.accelerator cannot be 'tpu'"),
        ("trainer.max_time=soon", "trainer.max_time cannot be 'soon'"),
        ("trainer.max_time=5", "trainer.max_time must be of type str, not 5"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps must be 1 or more, not 0"),
        ("trainer.strategy=nonsense", "trainer.strategy cannot be 'nonsense'"),
        ("trainer.devices=99999", "trainer.devices must be a number of devices"),
    ):
        assert launch.main(["--config", str(toy), "--train", *override.split()]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("there", "said"), [(0, "--gpu 0,7: 0 of these 2"), (1, "--gpu 0,7: 1 of these 2")])
def test_devices_that_are_not_there(toy, capsys, monkeypatch, there, said):
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    assert launch.main(["--config", str(toy), "--train", "--gpu", "0,7"]) == 2
    assert said in capsys.readouterr().err
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,7"


def test_files_that_are_no_state_of_a_training(toy, tmp_path, capsys):
    torch.save({"state_dict": {"layer.weight": torch.ones(1, 3)}, "global_step": 3}, tmp_path / "released.pth")
    (tmp_path / "page.ckpt").write_text("<html>404</html>")
    for name, message in (("released.pth", "system.weights="), ("page.ckpt", "is a web page")):
        assert launch.main(["--config", str(toy), "--train", f"resume={tmp_path / name}"]) == 2
        assert message in capsys.readouterr().err


def test_exactly_one_mode_is_needed(toy, capsys):
    for modes in ([], ["--train", "--test"], ["--train", "--overwrite"]):
        with pytest.raises(SystemExit):
            launch.main(["--config", str(toy), *modes])
    assert "--train" in capsys.readouterr().err


def test_an_unknown_flag_names_the_nearest(toy, capsys):
    with pytest.raises(SystemExit):
        launch.main(["--config", str(toy), "--train", "--verbos"])
    assert "did you mean '--verbose'" in capsys.readouterr().err


def test_a_broken_extension_stops_the_launch_with_file_and_line(toy, capsys, tmp_path):
    (tmp_path / "toy_extensions/broken.py").write_text("import math\n\nmath.nonsense()\n")
    assert launch.main(["--config", str(toy), "--train"]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path / 'toy_extensions/broken.py'}:3" in message
    assert "nonsense" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import sys\n\nsys.exit(0)\n", ":3: SystemExit: 0"),
        (
            "from triplaneturbo.materials import Material\nfrom triplaneturbo.registry import register\n\n\n"
            "@register('unlit')\nclass Mine(Material): ...\n",
            "cannot register Mine as the material 'unlit': the name belongs to Unlit",
        ),
    ],
)
def test_an_extension_that_ends_the_program_or_takes_a_name_is_named(toy, capsys, tmp_path, content, said):
    (tmp_path / "toy_extensions/broken.py").write_text(content)
    assert launch.main(["--config", str(toy), "--train"]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "toy_extensions/broken.py") in message
    assert said in message


def test_a_package_that_is_missing_is_said_before_anything_is_loaded(tiny_world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", False)
    monkeypatch.setattr("triplaneturbo.systems.scene.SceneSystem.assemble", lambda self: pytest.fail("loaded"))
    path = write_configuration(tiny_world, tmp_path)
    assert launch.main(["--config", str(path), "--train", "system.loggers.wandb.enable=true"]) == 2
    assert "system.loggers.wandb.enable needs a package" in capsys.readouterr().err


def test_a_bug_is_not_taken_for_a_mistake_of_the_user(toy, monkeypatch):
    monkeypatch.setattr("triplaneturbo.base.Chosen.build", lambda *_, **__: {}["nothing"])
    with pytest.raises(KeyError):
        launch.main(["--config", str(toy), "--train"])


@pytest.mark.parametrize(
    ("content", "line"),
    [("x = 1\ny = (\n", 2), ("import module_that_is_nowhere\n", 1), ("def f():\n    raise KeyError(1)\n\n\nf()\n", 2)],
)
def test_the_place_of_any_kind_of_failure_is_found(tmp_path, content, line):
    folder = tmp_path / f"broken_{line}_{len(content)}"
    folder.mkdir()
    (folder / "bad.py").write_text(content)
    with pytest.raises(ConfigError, match=rf"bad\.py:{line}"):
        import_extensions(folder)


def test_disabled_and_private_extensions_are_left_out(tmp_path):
    folder = tmp_path / "choosy"
    (folder / "package").mkdir(parents=True)
    (folder / "empty").mkdir()
    for name in ("package/__init__.py", "module.py", "other_disabled.py", "_private.py"):
        (folder / name).write_text("" if "module" in name or "init" in name else "1 / 0")
    assert import_extensions(folder) == ["choosy.module", "choosy.package"]
    assert import_extensions(tmp_path / "missing") == []


def experiment(**trainer):
    part = Chosen("any", Component, None)
    return ExperimentConfig(data=part, system=part, trainer=trainer)


def test_one_device_needs_no_process_group():
    options = trainer_options(experiment(strategy="ddp", accelerator="cpu"))
    assert (options["devices"], options["strategy"]) == (1, "auto")
    assert trainer_options(experiment(strategy="ddp", accelerator="cpu", devices=2))["strategy"] == "ddp"


def test_processes_are_counted_over_nodes():
    assert count_processes({"devices": 2}) == 2
    assert count_processes({"devices": [0, 3, 5], "num_nodes": 2}) == 6
    assert count_processes({"devices": "2"}) == 2


def test_validation_is_timed_in_batches_whatever_the_size_of_the_library():
    assert trainer_options(experiment(val_check_interval=5000))["check_val_every_n_epoch"] is None


def test_unknown_trainer_option():
    with pytest.raises(UnknownNameError, match="'precision'"):
        trainer_options(experiment(precission=32))


def test_trials_are_stamped_on_one_process_only(toy):
    def name(*overrides):
        request = Launch(mode="train", configs=[str(toy)], overrides=["use_timestamp=true", *overrides])
        return read_experiment(request)[0].trial_name

    assert name().startswith("t@")
    assert name("timestamp='@mine'") == "t@mine"
    assert name("trainer.devices=2") == "t"


def test_auto_resume_finds_the_newest_trial_and_stays_in_it(toy, tmp_path):
    request = Launch(mode="train", configs=[str(toy)], overrides=["use_timestamp=true", "resume=auto"])
    assert read_experiment(request)[1] is None
    for stamp, steps in (("@1", (2, 10)), ("@2", (4,))):
        folder = tmp_path / f"out/toy/t{stamp}/ckpts"
        folder.mkdir(parents=True)
        for step in steps:
            state = {"state_dict": {}, "global_step": step, "pytorch-lightning_version": "2.6.0", "loops": {}}
            save_checkpoint(folder / f"epoch=0-step={step}.ckpt", state)
        (folder / ".epoch=0-step=99.ckpt.123.tmp").touch()
    config, checkpoint = read_experiment(request)
    assert checkpoint == tmp_path / "out/toy/t@1/ckpts/epoch=0-step=10.ckpt"  # by steps, not by age
    assert config.trial_dir == tmp_path / "out/toy/t@1"


@pytest.fixture(scope="module")
def no_film_encoder():
    """Videos are .webp, whatever is installed here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triplaneturbo.pictures._has_encoder", lambda: False)
        yield


@pytest.fixture(scope="module")
def student(tiny_world, tmp_path_factory, no_film_encoder):
    """A trained miniature and its configuration."""
    out = tmp_path_factory.mktemp("student")
    path = write_configuration(tiny_world, out)
    assert launch.main(["--config", str(path), "--train", "trainer.max_steps=2", "trainer.val_check_interval=4"]) == 0
    return path


def test_training_looks_at_the_student(student):
    save = student.parent / "tiny/trial/save"
    assert files(save) == sorted(
        f"it2-val-{renderer}/a_red_cube{name}"
        for renderer in ("mesh", "volume")
        for name in (".webp", "/0.png", "/1.png", "/prompt.txt")
    )


def test_the_loss_log_has_a_line_a_step(student):
    lines = (student.parent / "tiny/trial/losses.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["prompts"]) for row in rows] == [(1, 4), (2, 8)]
    assert rows[1]["lr"] == pytest.approx(1e-3 - 1e-4 * 0.9)
    assert {"grad_norm", "skipped", "loss_sparsity_2nd", "loss_eikonal_2nd"} <= rows[0].keys()


def test_export_to_a_folder_a_prompt(student, tmp_path, caplog):
    arguments = ["--config", str(student), "--export", "resume=auto", "--out", str(tmp_path / "meshes")]
    assert launch.main([*arguments, "--prompt", "a blue cone", "--prompt", "what? a/b"]) == 0
    (said,) = [record.getMessage() for record in caplog.records if "differ from the original" in record.getMessage()]
    assert {line.split()[0] for line in said.splitlines()[1:]} > {"ray-focal", "lost-end-token", "deformation-in-cells"}
    found = {path.parent.name: path for path in (tmp_path / "meshes").glob("*/model.glb")}
    assert len(found) == 2
    assert "a_blue_cone" in found
    assert all((path.parent / "prompt.txt").exists() for path in found.values())


def test_a_mesh_of_another_seed_is_not_replaced_unless_told_to(student, tmp_path, capsys, monkeypatch):
    out = tmp_path / "meshes"
    options = ["system.exporter.turntable_views=0", "--prompt", "a blue cone", "--prompt", "a red cube"]
    command = ["--config", str(student), "--export", "resume=auto", "--out", str(out), *options]
    assert launch.main([*command, "--prompt", "a green cone"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert launch.main(command) == 0  # the same once more
    with monkeypatch.context() as patch:
        patch.setattr("triplaneturbo.systems.scene.extract_meshes", None)
        assert launch.main([*command, "seed=1"]) == 2
        assert launch.main([*command, "seed=1", "trainer.limit_predict_batches=1"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"2 of 2 meshes would replace others: {out}/a_blue_cone holds one of 'a blue cone' by seed 0" in first
    assert "not of 'a blue cone' by seed 1" in first
    assert "1 of 1 meshes" in second
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert launch.main([*command, "seed=1", "--overwrite"]) == 0
    changed = {path.parent.name for path in before if path.read_bytes() != before[path]}
    assert changed == {"a_blue_cone", "a_red_cube"}


def test_export_and_pipeline_name_the_same_origin(student, tmp_path):
    trial = student.parent / "tiny/trial"
    arguments = ["--config", str(student), "--export", f"resume={trial / 'ckpts/last.ckpt'}", "--out", str(tmp_path)]
    assert launch.main([*arguments, "--prompt", "a blue cone", "trainer.accelerator=cpu"]) == 0
    pipe = TextToMeshPipeline.from_training(trial / "configs/parsed.yaml", trial / "ckpts/last.ckpt", "cpu")
    assert pipe("a blue cone", seed=0).origins == (read_origin(tmp_path / "a_blue_cone"),)


def test_a_checkpoint_a_prompt_and_a_seed_are_one_mesh(student, tmp_path):
    """To the last byte on the CPU: whatever else is exported, and whether launch.py or the pipeline makes it."""
    trial = student.parent / "tiny" / "trial"
    options = ["resume=auto", "seed=5", "system.exporter.turntable_views=0", "trainer.accelerator=cpu"]
    for out, prompts in (("a", ["a blue cone", "a red cube"]), ("b", ["a green cone", "a red cube", "a blue cone"])):
        named = [f"--prompt={prompt}" for prompt in prompts]
        arguments = ["--config", str(student), "--export", "--out", str(tmp_path / out), *named, *options]
        assert launch.main(arguments) == 0
    pipe = TextToMeshPipeline.from_training(trial / "configs" / "parsed.yaml", trial / "ckpts" / "last.ckpt", "cpu")
    for prompt in ("a red cube", "a blue cone"):
        (own,) = pipe(prompt, seed=5).export_all(tmp_path / "pipe", turntable_views=0)
        (other,) = pipe(prompt, seed=6).export_all(tmp_path / "other", turntable_views=0)
        exported = [(tmp_path / out / own.parent.name / "model.glb").read_bytes() for out in ("a", "b")]
        assert exported == [own.read_bytes()] * 2
        assert other.read_bytes() != own.read_bytes()


def test_export_with_textures(student, tmp_path):
    options = ["system.exporter.texture_size=64", "system.exporter.turntable_views=0", "trainer.accelerator=cpu"]
    arguments = ["--config", str(student), "--export", "resume=auto", "--out", str(tmp_path), *options]
    assert launch.main([*arguments, "system.exporter.fmt=obj-mtl"]) == 0
    assert launch.main([*arguments, "system.exporter.fmt=glb", "system.exporter.save_uv=true"]) == 0
    names = {"model.obj", "model.mtl", "texture_kd.png", "model.glb", "prompt.txt", "origin.json"}
    assert {path.name for path in (tmp_path / "a_red_cube").iterdir()} == names
    textures = [read_mesh(tmp_path / "a_red_cube" / name).texture.image for name in ("model.obj", "model.glb")]
    assert torch.equal(*textures)


AWKWARD = (
    "a red cube " * 150,
    "\u4e00\u53ea\u7ea2\u8272\u7684\u732b",
    "\U0001f408",
    "\u0642\u0637\u0629 \u202ea",
    "../../up",
    "/etc/passwd",
    "two\nlines\r\n",
    "nul\0",
    "--out",
    "CON",
    "x" * 300,
    "a b",
    "a_b",
    "a b",
)


def test_every_prompt_stays_in_its_own_folder(student, tmp_path, caplog):
    out = tmp_path / "inner/meshes"
    command = ["--config", str(student), "--export", "resume=auto", "--out", str(out), "compat=right"]
    prompts = [f"--prompt={prompt}" for prompt in AWKWARD]
    assert launch.main([*command, "system.exporter.turntable_views=0", *prompts]) == 0
    texts = {path.parent.name: path.read_bytes().decode() for path in out.glob("*/prompt.txt")}
    assert sorted(texts.values()) == sorted(set(AWKWARD))
    assert all((out / folder / "model.glb").is_file() for folder in texts)
    assert len(files(tmp_path)) == 3 * len(texts)
    assert "1 prompts are there more than once" in caplog.text
    assert "is longer than the 24 tokens" in caplog.text
    assert "differ from the original" not in caplog.text


def test_prompts_with_nothing_in_them(student, capsys):
    for prompt in ("", "  ", "\n", "caf\udce9"):
        assert launch.main(["--config", str(student), "--export", f"--prompt={prompt}"]) == 2
        assert "the given prompts" in capsys.readouterr().err


def test_test_mode_writes_beside_the_training(student):
    assert launch.main(["--config", str(student), "--test", "resume=auto", "trainer.limit_test_batches=1"]) == 0
    assert (student.parent / f"tiny/trial/save/it2-test-mesh/{PROMPTS[0].replace(' ', '_')}.webp").exists()


def test_weights_alone_can_be_taken_from_a_checkpoint(student):
    last = student.parent / "tiny/trial/ckpts/last.ckpt"
    assert launch.main(["--config", str(student), "--export", f"system.weights={last}"]) == 0
    assert (student.parent / "tiny/trial/save/it2-export/a_red_cube/model.glb").exists()


def test_weights_alone_start_a_new_run(student):
    last = student.parent / "tiny/trial/ckpts/last.ckpt"
    arguments = ["--config", str(student), "--train", "tag=new", "trainer.max_steps=1", f"system.weights={last}"]
    assert launch.main(arguments) == 0
    (line,) = (student.parent / "tiny/new/losses.jsonl").read_text().splitlines()
    assert (json.loads(line)["step"], json.loads(line)["lr"]) == (1, 1e-3)


def test_help_needs_no_torch():
    code = "import sys, launch\ntry: launch.main(['--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--prompt" in result.stdout
