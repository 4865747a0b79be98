"""Reading experiments: files, overrides, interpolations, errors."""

from pathlib import Path

import pytest
import yaml

from triplaneturbo.base import Chosen, Component, as_tree
from triplaneturbo.bounds import PROJECT
from triplaneturbo.config import ExperimentConfig, read_config, translate_file
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.registry import register

MINIMAL = "data_type: some-data\nsystem_type: some-system\n"
ROOT = Path(__file__).parents[1]
OLD = (ROOT / "tests/trials/first/configs/parsed.yaml").read_text().replace("@", "/")
RECIPE = ROOT / "configs/shapeworld/tiny.yaml"


@register("some-data")
class SomeData(Component):
    role = "data"


@register("some-system")
class SomeSystem(Component):
    role = "system"


def reading(tmp_path, text, *overrides, **values):
    path = tmp_path / "some.yaml"
    path.write_text(MINIMAL + text)
    return read_config([path], overrides, **values)


def data(tmp_path, text, *overrides, **values):
    """The options under data, without the module's name."""
    found = reading(tmp_path, text, *overrides, **values).tree["data"]
    return {key: value for key, value in found.items() if key != "type"}


def read(tmp_path, text, *overrides, **values):
    return reading(tmp_path, text, *overrides, **values).experiment()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("${calc_exp_lr_decay_rate:0.25,2}", 0.5),
        ("${add:1,2}", 3),
        ("${sub:1,2}", -1),
        ("${mul:3,2}", 6),
        ("${div:3,2}", 1.5),
        ("${idiv:7,2}", 3),
        ("${basename:a/b.json}", "b.json"),
        ("${rmspace:'a b c',_}", "a_b_c"),
        ("${tuple2:3}", [3.0, 3.0]),
        ("${gt0:1}", True),
        ("${gt0:0}", False),
        ("${not:true}", False),
        ("${cmaxgt0:0.0}", False),
        ("${cmaxgt0:[0, 0.0, 0.5, 100]}", True),
        ("${cmaxgt0:[5, 0.0, 0.0, 100]}", False),
        ("${cmaxgt0:[0.5, 0.0, 100]}", True),
        ("${cmaxgt0orcmaxgt0:0,[0, 1.0, 0.0, 100]}", True),
        ("${cmaxgt0orcmaxgt0:0,0}", False),
    ],
)
def test_resolvers(tmp_path, expression, value):
    assert data(tmp_path, f'data:\n  x: "{expression}"\n')["x"] == value


def test_later_files_and_then_overrides_win(tmp_path):
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(MINIMAL + "data: {a: 1, b: 1, c: 1}\n")
    second.write_text("data: {b: 2, c: 2}\n")
    tree = read_config([first, second], ["data.c=3"]).tree
    assert tree["data"] == {"type": "some-data", "a": 1, "b": 2, "c": 3}


def test_overrides_keep_yaml_types_and_reach_interpolations(tmp_path):
    overrides = "data.lr=[0, 2e-4, 1e-5, 100]", "data.name=a b", "data.flag=false"
    assert data(tmp_path, "data: {copy: '${data.lr}'}\n", *overrides) == {
        "copy": [0, 2e-4, 1e-5, 100],
        "lr": [0, 2e-4, 1e-5, 100],
        "name": "a b",
        "flag": False,
    }


def test_published_tag_is_the_name_of_the_prompt_library(tmp_path):
    text = "name: x\ntag: ${rmspace:${data.prompt_library},_}\ndata: {prompt_library: '???'}\n"
    tree = reading(tmp_path, text, "data.prompt_library=some prompts").tree
    assert (tree["name"], tree["tag"]) == ("x", "some_prompts")
    with pytest.raises(ConfigError, match=r"data\.prompt_library"):
        reading(tmp_path, text)


def test_number_of_processes_is_there_for_interpolations(tmp_path):
    assert data(tmp_path, "data: {n: '${mul:${n_gpus},3}'}\n", n_gpus=4) == {"n": 12}


def test_unknown_top_level_key_names_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'system'"):
        read(tmp_path, "", "sytem.loss.lambda_asd=1")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("data: {a: '${data.b}'}\n", (), r"data\.b"),
        ("data: {a: '${nothing:1}'}\n", (), "nothing"),
        ("data: {a: '${div:1,0}'}\n", (), "division by zero"),
        ("", ("data.a",), "neither a flag nor an override"),
        ("", ("--tran",), "neither a flag nor an override"),
        ("a: [1\n", (), "not valid YAML"),
        ("", ("tag=@x",), "quote it"),
        ("seed: many\n", (), "seed must be of type int"),
        ("compat: both\n", (), "allowed: 'right', 'original'"),
        ("", ("guidance.rd_weight=0",), "write system.guidance"),
        ("trial_dir: here\n", (), "follows from exp_root_dir"),
        ("checkpoint: {every_n_train_steps: 0}\n", (), "every_n_train_steps must be 1 or more"),
        ("checkpoint: {save_topk: 0}\n", (), "save_top_k"),
    ],
)
def test_errors_say_where_and_what(tmp_path, text, overrides, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text, *overrides)


def test_missing_file_and_file_without_a_mapping(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_config([tmp_path / "nowhere.yaml"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        read_config([tmp_path / "list.yaml"])


def test_required_keys_are_named():
    with pytest.raises(ConfigError, match="'system'"):
        read_config([], ["data.type=some-data"]).experiment()


def test_reading_touches_no_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = [Chosen("d", Component, None)] * 2
    config = ExperimentConfig(data=parts[0], system=parts[1], name="n", tag="t", timestamp="@now")
    assert config.trial_dir == Path("outputs/n/t@now")
    assert list(tmp_path.iterdir()) == []


def test_the_kept_configuration_reads_back(tmp_path):
    given = read_config([RECIPE], ["checkpoint.save_top_k=3", "exp_root_dir=x"])
    kept = tmp_path / "parsed.yaml"
    kept.write_text(given.to_yaml())
    assert read_config([kept]).experiment() == given.experiment()
    assert yaml.safe_load(kept.read_text())["system"]["geometry"]["space_generator"]["network_dtype"] == "auto"


def test_values_of_environment_variables_are_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "hush")
    text = """data:
  key: ${oc.env:SOME_KEY}
  inside: [1, {copy: "a ${data.key} b"}]
  size: ${oc.env:SOME_SIZE,3}
  open: ${mul:2,3}
description: ${oc.env:SOME_KEY}
"""
    assert data(tmp_path, text) == {"key": "hush", "inside": [1, {"copy": "a hush b"}], "size": "3", "open": 6}
    text = "base: shapeworld/tiny.yaml\ndescription: ${oc.env:SOME_KEY}\ndata: {prompt_library: '${oc.env:SOME_KEY}'}\n"
    for name, content in (("ours", text), ("published", OLD)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(content.replace("description: ''", "description: ${oc.env:SOME_KEY}"))
        given = read_config([path], ["data.prompt_library=${oc.env:SOME_KEY}", "exp_root_dir=x"])
        kept = tmp_path / "parsed.yaml"
        kept.write_text(given.to_yaml(timestamp="@now"))
        assert given.experiment().description == given.tree["data"]["prompt_library"] == "hush"
        assert "hush" not in kept.read_text()
        assert kept.read_text().count("${oc.env:SOME_KEY}") == 2
        assert yaml.safe_load(kept.read_text())["timestamp"] == "@now"
        assert read_config([kept]).experiment().description == "hush"
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="Environment variable 'SOME_KEY' not found"):
        read_config([kept])


@pytest.mark.parametrize(
    ("option", "value"), [("name", "../../esc"), ("name", "/esc"), ("tag", "a/../../esc"), ("timestamp", "/../esc")]
)
def test_a_run_stays_in_its_folder(tmp_path, option, value):
    with pytest.raises(ConfigError, match=f"{option} must be a name or path that stays in its folder"):
        read(tmp_path, "", f"{option}={value}")


@pytest.mark.parametrize(
    "expression",
    [
        "${mul:aaaaaaaa,1000000000}",
        "${mul:[1],1000000000}",
        "${mul:1e200,1e200}",
        "${add:[1],[2]}",
        "${calc_exp_lr_decay_rate:10,1e-300}",
        "${calc_exp_lr_decay_rate:-2,2}",
        "${tuple2:a}",
    ],
)
def test_resolvers_take_numbers(tmp_path, expression):
    with pytest.raises(ConfigError, match=r"number is needed here|out of range"):
        read(tmp_path, f'data:\n  x: "{expression}"\n')


def test_interpolations_and_aliases_cannot_take_memory(tmp_path):
    chain = "".join(f"  z{i + 1}: '{('${data.z' + str(i) + '}') * 10}'\n" for i in range(12))
    with pytest.raises(ConfigError, match="more than 1,000,000 characters"):
        read(tmp_path, f"data:\n  z0: xxxxxxxx\n{chain}")
    containers = "".join(f"  z{i + 1}: {{a: '${{data.z{i}}}', b: '${{data.z{i}}}'}}\n" for i in range(40))
    with pytest.raises(ConfigError, match="more than 1,000,000 characters"):
        read(tmp_path, f"data:\n  z0: xxxxxxxx\n{containers}")
    aliases = "".join(f"z{i + 1}: &z{i + 1} [{', '.join([f'*z{i}'] * 10)}]\n" for i in range(12))
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        read(tmp_path, f"z0: &z0 x\n{aliases}")
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        read(tmp_path, "data: &d {a: *d}\n")
    with pytest.raises(ConfigError, match="nested too deeply"):
        read(tmp_path, "data: " + "[" * 9000 + "]" * 9000)
    neighbours = "".join(f"  z{i + 1}: '${{.z{i}}}${{data.z{i}}}'\n" for i in range(5))
    assert data(tmp_path, f"data:\n  z0: x\n{neighbours}")["z5"] == "x" * 32


def test_paths_of_the_command_line_start_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = reading(tmp_path, "exp_root_dir: outputs\ndata: {a_path: there}\n", "system={guidance: {a_path: here}}")
    assert given.tree["exp_root_dir"] == "outputs"  # until a component says that it is a path
    assert given.tree["data"]["a_path"] == "there"
    assert given.tree["system"]["guidance"]["a_path"] == str(tmp_path / "here")
    given = ["exp_root_dir=mine", "resume=auto", "data.name=plain", "name=x", "data.own_dir=${name}"]
    tree = reading(tmp_path, "", *given).tree
    assert (tree["exp_root_dir"], tree["resume"]) == (str(tmp_path / "mine"), "auto")
    assert tree["data"] == {"type": "some-data", "name": "plain", "own_dir": "x"}
    assert read(tmp_path, "").exp_root_dir == str(PROJECT / "outputs")
    assert read(tmp_path, "", "resume=/a/b.ckpt").resume == "/a/b.ckpt"


# What files build on


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


OURS = (
    "data: {type: some-data}\nsystem: {type: some-system, part: {type: a, x: 1}, named: {p: {type: a}, q: {type: b}}}\n"
)


def test_a_file_says_what_differs_from_its_base(tmp_path):
    path = write(tmp_path, mine="base: other.yaml\nname: mine\nsystem: {part: {x: 2}}\n", other=f"name: other\n{OURS}")
    tree = read_config([path]).tree
    assert (tree["name"], tree["system"]["part"]) == ("mine", {"type": "a", "x": 2})


def test_another_type_takes_the_place_of_a_block_and_null_takes_a_name_away(tmp_path):
    path = write(tmp_path, mine="base: other.yaml\nsystem: {part: {type: b, y: 1}, named: {p: null}}\n", other=OURS)
    system = read_config([path], ["system.named.r={type: c}"]).tree["system"]
    assert system["part"] == {"type": "b", "y": 1}
    assert system["named"] == {"p": None, "q": {"type": "b"}, "r": {"type": "c"}}


def test_a_file_may_build_on_several_and_on_a_recipe_by_its_name(tmp_path):
    path = write(tmp_path, mine="base: [shapeworld/tiny.yaml, extra.yaml]\n", extra="data: {n_val_views: 3}\n")
    given = read_config([path])
    assert given.tree["data"]["n_val_views"] == 3
    assert given.tree["name"] == "shapeworld-tiny"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: b.yaml\n", "b": "base: a.yaml\n"}, r"a\.yaml builds on itself"),
        ({"a": "base: 5\n"}, "base must be the name of a file"),
        ({"a": "base: nowhere.yaml\n"}, "no configuration file nowhere.yaml"),
        ({"a": f"base: b.yaml\n{MINIMAL}", "b": OURS}, "files are written in different dialects"),
    ],
)
def test_errors_of_bases(tmp_path, files, message):
    with pytest.raises(ConfigError, match=message):
        read_config([write(tmp_path, **files)])


# Where values come from


def test_every_value_is_shown_with_its_origin(tmp_path):
    path = write(tmp_path, mine="base: shapeworld/tiny.yaml\nseed: 3\n")
    lines = read_config([path], ["system.rounds=2"]).show().splitlines()

    def line(start):
        (found,) = [text for text in lines if text.startswith(start)]
        return found.split("  # ")

    assert line("seed: 3")[1] == str(path)
    assert line("  rounds: 2")[1] == "command line: system.rounds=2"
    assert line("  update_every_round: true")[1].endswith("configs/shapeworld/prd.yaml")
    assert line("  max_gradient_norm: null")[1] == "default"
    assert yaml.safe_load("\n".join(lines)) == as_tree(read_config([path], ["system.rounds=2"]).experiment())


def test_values_of_a_translated_file_have_their_origin(tmp_path):
    old = write(tmp_path, old=OLD)
    options = ["system.guidance.mv_weight=0.5", "system.rounds=4", "system.num_steps_training=8", "compat=original"]
    lines = read_config([old], options).show().splitlines()
    found = {text.split(":")[0].strip(): text.split("  # ")[1] for text in lines if "command line" in text}
    assert found["weight"] == "command line: system.guidance.mv_weight=0.5"
    assert found["rounds"] == "command line: system.rounds=4"
    assert found["training_timesteps"] == "command line: system.num_steps_training=8"
    assert any("deformation_unit: cell" in text and "compat: original" in text for text in lines)


# Dialects


def test_overrides_may_be_in_either_dialect():
    pairs = [
        ("system.guidance.mv_weight=0.5", "system.guidance.teachers.mvdream.weight=0.5"),
        ("system.guidance.rd_use_sds=true", "system.guidance.teachers.richdreamer.rule.type=sds"),
        ("system.renderer_2nd.patch_size=6", "system.renderers.volume.patch_size=6"),
        ("system.renderer.def_grad_shrink=0.5", "system.renderers.mesh.def_grad_shrink=0.5"),
        ("system.loss.lambda_eikonal_2nd=3", "system.losses.volume.eikonal=3"),
        ("system.num_parts_training=2", "system.rounds=2"),
        ("system.geometry.sdf_bias_params=0.4", "system.geometry.field.bias_size=0.4"),
        ("data.unsup_fovy_range=[40, 50]", "data.cameras.fovy=[40, 50]"),
        ("system.parallel_guidance=false", "system.guidance.parallel=false"),
    ]
    for theirs, ours in pairs:
        assert read_config([RECIPE], [theirs]).tree == read_config([RECIPE], [ours]).tree, theirs


def test_options_of_the_published_processors_reach_the_encoders_that_teachers_are_told():
    full, library = ROOT / "configs/TriplaneTurbo_v1.yaml", "data.prompt_library=some"
    for theirs, ours in (
        ("data.guidance_processor.negative_prompt=x", "data.conditions.sd15.negative_prompt=x"),
        ("data.guidance_processor.negative_prompt_2nd=x", "data.conditions.sd21.negative_prompt=x"),
        (
            "data.condition_processor.pretrained_model_name_or_path=/x",
            "data.conditions.sd21.pretrained_model_name_or_path=/x",
        ),
    ):
        assert read_config([full], [library, theirs]).tree == read_config([full], [library, ours]).tree, theirs
    given = [library, "data.condition_processor.negative_prompt=x"]
    assert read_config([full], given).tree == read_config([full], [library]).tree


def test_what_is_no_option_of_either_dialect_is_an_error():
    with pytest.raises(UnknownNameError, match="has no option 'mv_wait'"):
        read_config([RECIPE], ["system.guidance.mv_wait=1"]).experiment()


def test_a_translated_file_says_the_same(tmp_path):
    old = write(tmp_path, old=OLD)
    path = write(tmp_path, new=translate_file(old))
    assert read_config([path]).experiment() == read_config([old]).experiment()
    with pytest.raises(ConfigError, match="nothing to translate"):
        translate_file(path)
