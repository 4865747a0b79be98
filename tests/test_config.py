"""Reading experiments: files, overrides, interpolations, errors."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from triplaneturbo.base import parse_config
from triplaneturbo.bounds import PROJECT
from triplaneturbo.config import ExperimentConfig, load_config, to_yaml
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.extensions import import_extensions
from triplaneturbo.registry import find

MINIMAL = "data_type: some-data\nsystem_type: some-system\n"


def read(tmp_path, text, *overrides, **values):
    path = tmp_path / "some.yaml"
    path.write_text(MINIMAL + text)
    return load_config([path], overrides, **values)


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
    assert read(tmp_path, f'data:\n  x: "{expression}"\n').data["x"] == value


def test_later_files_and_then_overrides_win(tmp_path):
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(MINIMAL + "data: {a: 1, b: 1, c: 1}\n")
    second.write_text("data: {b: 2, c: 2}\n")
    assert load_config([first, second], ["data.c=3"]).data == {"a": 1, "b": 2, "c": 3}


def test_overrides_keep_yaml_types_and_reach_interpolations(tmp_path):
    overrides = "data.lr=[0, 2e-4, 1e-5, 100]", "data.name=a b", "data.flag=false"
    config = read(tmp_path, "data: {copy: '${data.lr}'}\n", *overrides)
    assert config.data == {"copy": [0, 2e-4, 1e-5, 100], "lr": [0, 2e-4, 1e-5, 100], "name": "a b", "flag": False}


def test_published_tag_is_the_name_of_the_prompt_library(tmp_path):
    text = "name: x\ntag: ${rmspace:${data.prompt_library},_}\ndata: {prompt_library: '???'}\n"
    assert read(tmp_path, text, "data.prompt_library=some prompts").trial_dir == PROJECT / "outputs/x/some_prompts"
    with pytest.raises(ConfigError, match=r"data\.prompt_library"):
        read(tmp_path, text)


def test_number_of_processes_is_there_for_interpolations(tmp_path):
    assert read(tmp_path, "data: {n: '${mul:${n_gpus},3}'}\n", n_gpus=4).data == {"n": 12}


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
        load_config([tmp_path / "nowhere.yaml"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_config([tmp_path / "list.yaml"])


def test_required_keys_are_named():
    with pytest.raises(ConfigError, match="system_type"):
        load_config([], ["data_type=some-data"])


def test_reading_touches_no_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(data_type="d", system_type="s", name="n", tag="t", timestamp="@now")
    assert config.trial_dir == Path("outputs/n/t@now")
    assert list(tmp_path.iterdir()) == []


def test_the_kept_configuration_reads_back(tmp_path):
    config = read(tmp_path, "data: {a: [0, 1.0, 0.5, 10]}\ncheckpoint: {save_top_k: 3}\n")
    kept = tmp_path / "parsed.yaml"
    kept.write_text(to_yaml(config))
    assert load_config([kept]) == config


def test_values_of_environment_variables_are_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "hush")
    text = """data:
  key: ${oc.env:SOME_KEY}
  inside: [1, {copy: "a ${data.key} b"}]
  size: ${oc.env:SOME_SIZE,3}
  open: ${mul:2,3}
"""
    config = read(tmp_path, text)
    assert config.data == {"key": "hush", "inside": [1, {"copy": "a hush b"}], "size": "3", "open": 6}
    config = dataclasses.replace(config, timestamp="@now")
    kept = tmp_path / "parsed.yaml"
    kept.write_text(to_yaml(config))
    assert "hush" not in kept.read_text()
    assert yaml.safe_load(kept.read_text())["data"]["open"] == 6
    assert load_config([kept]) == config
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="Environment variable 'SOME_KEY' not found"):
        load_config([kept])


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
    assert read(tmp_path, f"data:\n  z0: x\n{neighbours}").data["z5"] == "x" * 32


def test_paths_of_the_command_line_start_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read(tmp_path, "exp_root_dir: outputs\ndata: {a_path: there}\n", "system={guidance: {mv_ckpt_path: here}}")
    assert config.exp_root_dir == str(PROJECT / "outputs")
    assert config.data["a_path"] == "there"  # until a component says that it is a path
    assert config.system["guidance"]["mv_ckpt_path"] == str(tmp_path / "here")
    config = read(tmp_path, "", "exp_root_dir=mine", "resume=auto", "data.name=plain", "name=x", "data.own_dir=${name}")
    assert (config.exp_root_dir, config.resume) == (str(tmp_path / "mine"), "auto")
    assert config.data == {"name": "plain", "own_dir": "x"}
    assert read(tmp_path, "", "resume=/a/b.ckpt").resume == "/a/b.ckpt"


SHIPPED = sorted(Path(__file__).parents[1].glob("configs/**/*.yaml"))


def parts(options, place):
    """Every (place, registered name, options) in a nested configuration."""
    for key, value in options.items():
        if key.endswith("_type") and key.removesuffix("_type") in options:
            name = key.removesuffix("_type")
            yield f"{place}.{name}", value, options.get(name) or {}
            yield from parts(options.get(name) or {}, f"{place}.{name}")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_option_of_every_shipped_configuration_exists(path):
    import_extensions(Path(__file__).parents[1] / "custom")
    library = ["data.prompt_library=some_library"] if "prompt_library" in path.read_text() else []
    config = load_config([path], library)
    found = list(parts(vars(config), "config"))
    assert {place for place, *_ in found} >= {"config.data", "config.system"}
    for place, name, options in found:
        assert parse_config(find(name).Config, options, place)
