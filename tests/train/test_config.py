"""Flags, files and fields are one thing."""

import dataclasses

import pytest
import yaml

from medseg.cli import main
from medseg.config import TrainConfig, parse_flags, write_yaml


def test_no_flags_are_the_defaults():
    assert parse_flags([]) == TrainConfig()


def test_published_spellings():
    config = parse_flags(["--dataset", "d", "--csvfile=c.csv", "--epoch", "3"])
    assert (config.data, config.csv, config.epochs) == ("d", "c.csv", 3)


def test_flags_win_over_the_file_before_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 5\nlr: 0.1\n")
    config = parse_flags(["--config", str(path), "--epochs", "7"])
    assert (config.epochs, config.lr) == (7, 0.1)


def test_flags_win_over_the_file_after_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 5\n")
    assert parse_flags(["--epochs", "7", f"--config={path}"]).epochs == 7


def test_what_is_left_open_depends_on_data_and_device():
    assert (TrainConfig().resolved("cpu").epochs or 99) < 20
    assert (TrainConfig(data="d").resolved("cpu").epochs or 0) > 20
    assert TrainConfig().resolved("cpu").workers == 0
    assert TrainConfig(workers=1, epochs=3).resolved("cuda") == TrainConfig(workers=1, epochs=3)


def test_yaml_gives_the_config_back(tmp_path):
    config = TrainConfig(epochs=3, augment=False, workers=2, backend="reference")
    path = tmp_path / "c.yaml"
    path.write_text(write_yaml(config))
    assert parse_flags(["--config", str(path)]) == config
    assert set(yaml.safe_load(path.read_text())) == {f.name for f in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("auto", ("auto", None)),
        ("cpu", ("cpu", None)),
        ("cuda:2", ("cuda", 2)),
        ("4", ("auto", 4)),
        ("cpu:2", ("cpu", 2)),
    ],
)
def test_devices(text, meaning):
    assert TrainConfig(devices=text).accelerator_and_count() == meaning


def test_help_lists_commands_and_flags(capsys):
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for item in dataclasses.fields(TrainConfig):
        assert f"--{item.name}" in said
