import dataclasses
import inspect
import json

import pytest

from diticli.config import RunConfig
from diticli.config_groups import ChunksConfig, DataConfig, StageConfig, UNetConfig
from diticli.errors import ChunkError, ConfigError
from diticli.settings import build_config, from_dict, preset_names, read_settings, to_dict

PAPER = {"celeba64": 38_000_000, "ffhq128": 64_000_000, "bedroom128": 70_000_000}


def test_these_presets_ship():
    assert preset_names() == ["bedroom128", "celeba64", "faces32", "faces64", "ffhq128"]


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_builds_and_carries_its_name_and_resolution(preset):
    config = build_config(preset)
    assert config.preset == preset
    assert config.data.resolution == int(preset[-3:] if preset.endswith("128") else preset[-2:])
    assert config.chunks.layout().latent_dim == config.chunks.latent_dim
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("preset", preset_names())
def test_the_chunks_of_the_readmes_third_command_exist_in_every_preset(preset):
    """`diti edit a.png b.png --chunks 10-20`, on whatever preset trained the model."""
    layout = build_config(preset).layout()
    assert layout.chunks == 64, "as in the paper"
    dims = sum(layout.ends[c] - layout.starts[c] for c in layout.parse("10-20"))
    assert dims > layout.latent_dim / 6


@pytest.mark.parametrize(("preset", "images"), PAPER.items())
def test_paper_presets_have_the_papers_numbers(preset, images):
    config = build_config(preset)
    features = config.features
    assert (features.images, features.batch_size, features.ema_decay) == (images, 128, 0.9999)
    assert features.peak_learning_rate == 1e-4 * 128 / 32
    assert (features.decay, features.warmup_images, features.grad_clip) == ("constant", 0, 0.0)
    assert (config.chunks.count, config.chunks.latent_dim, config.chunks.partition) == (64, 512, "staged")
    assert config.chunks.stage_ends == (50, 100, 300, 500, 1000)
    assert config.chunks.stage_dims == (10, 25, 327, 100, 50)
    widths = (64, 128, 128, 128) if preset == "celeba64" else (64, 128, 256, 256, 256)
    assert (config.encoder.widths, config.encoder.attention_size) == (widths, 16)
    assert config.gradient == "cumulative"


def test_later_layers_win_over_earlier_ones(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "seed = 1\nlog_every = 7\n[features]\nimages = 100\nbatch_size = 10\n"
        "[chunks]\ncount = 8\npartition = 'uniform'\n"
    )
    options = {"features.images": 200, "chunks.count": 4, "seed": 2}
    config = build_config("faces32", file=file, options=options, assignments=("chunks.count = 2", "seed=3"))
    assert config.base.images == 80_000  # preset
    assert (config.log_every, config.features.batch_size) == (7, 10)  # file
    assert config.features.images == 200  # options
    assert (config.chunks.count, config.seed) == (2, 3)  # assignments
    assert config.features.learning_rate == 1e-3  # a group keeps what nobody named


def test_a_runs_own_config_json_is_a_settings_file(tmp_path):
    wanted = build_config("celeba64", options={"seed": 11, "unet.channels": [32, 64]})
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": to_dict(wanted), "versions": {"torch": "2"}}))
    assert build_config("faces32", file=file) == wanted
    file.write_text(json.dumps(to_dict(wanted)))
    assert read_settings(file) == to_dict(wanted)


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("features.batch_size=64", "features.batch_size", 64),
        ("unet.channels=32,64,64", "unet.channels", (32, 64, 64)),
        ("unet.channels=[32, 64]", "unet.channels", (32, 64)),
        ("base.learning_rate=1", "base.learning_rate", 1.0),
        ("base.learning_rate=2e-4", "base.learning_rate", 2e-4),
        ("gradient=dual", "gradient", "dual"),
        ('gradient="detached"', "gradient", "detached"),
        ("data.source=/pictures/a=b", "data.source", "/pictures/a=b"),
        ("data.horizontal_flip=false", "data.horizontal_flip", False),
        ("compile=true", "compile", True),
        ("compile=false", "compile", False),
        ("compile=auto", "compile", "auto"),
        ("base_model=google/ddpm-celebahq-256", "base_model", "google/ddpm-celebahq-256"),
    ],
)
def test_assignments_are_read_as_what_they_set(assignment, path, value):
    got = build_config("faces32", assignments=(assignment,))
    for name in path.split("."):
        got = getattr(got, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "message", "remedy"),
    [
        ("sed", "Unknown setting 'sed'", "Did you mean 'seed'?"),
        ("features.bach_size", "Unknown setting 'features.bach_size'", "Did you mean 'features.batch_size'?"),
        ("chunks.qqqq", "Unknown setting 'chunks.qqqq'", "Known here: count, latent_dim"),
        ("nonsense.deep.key", "Unknown setting 'nonsense'", "Known here: preset, data"),
    ],
)
def test_unknown_keys_are_errors_that_help(key, message, remedy):
    with pytest.raises(ConfigError) as error:
        build_config("faces32", options={key: 1})
    assert message in error.value.message
    assert remedy in error.value.remedy


def test_unknown_preset_and_assignment_without_a_sign():
    with pytest.raises(ConfigError, match=r"no preset 'faces33'.*faces32, faces64"):
        build_config("faces33")
    with pytest.raises(ConfigError, match=r"--set 'seed 3' has no '='"):
        build_config("faces32", assignments=("seed 3",))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 1.5, "seed is a whole number, got 1.5"),
        ("seed", True, "seed is a whole number, got True"),
        ("seed", "x", "seed is a whole number, got 'x'"),
        ("data.source", 3, "data.source is a str, got 3"),
        ("data.horizontal_flip", 1, "data.horizontal_flip is a bool, got 1"),
        ("base.learning_rate", "fast", "base.learning_rate is a float, got 'fast'"),
        ("base.learning_rate", True, "base.learning_rate is a float, got True"),
        ("unet.channels", 32, "unet.channels is a list of whole numbers, got 32"),
        ("unet.channels", [32, 0.5], "unet.channels is a list of whole numbers"),
        ("unet", 32, "unet is a group of settings, got 32"),
        ("unet.channels.x", 32, "unet.channels is a list of whole numbers, got {'x': 32}"),
        ("gradient", "both", "gradient is one of cumulative, detached, dual; got 'both'"),
        ("gradient", [], r"gradient is one of cumulative, detached, dual; got \[\]"),
        ("precision", "fp16", "precision is one of auto, fp32, bf16; got 'fp16'"),
        ("features.images", 0, "images, batch_size and learning_rate above zero, got 0"),
        ("features.batch_size", -1, "above zero"),
        ("base.learning_rate", 0, "above zero"),
        ("base.learning_rate", float("nan"), "above zero"),
        ("base.learning_rate", float("inf"), "above zero"),
        ("base.ema_decay", 1, r"ema_decay lies in \[0, 1\), got 1"),
        ("base.ema_decay", float("nan"), r"ema_decay lies in \[0, 1\)"),
        ("log_every", 0, "log_every must be at least 1, got 0"),
        ("checkpoint_every", 0, "checkpoint_every must be at least 1, got 0"),
        ("data.resolution", 30, "Resolution 30 is not divisible by 8"),
        ("data.resolution", 0, "Resolution 0 is not divisible by 8"),
        ("unet.channels", [30, 60], r"UNet channels \[30, 60\] are not divisible by 8 norm groups"),
        ("unet.norm_groups", 0, "above zero"),
        ("unet.channels", [], "above zero"),
        ("unet.channels", [-8, 8], "above zero"),
        ("encoder.widths", [], "above zero"),
        ("encoder.attention_heads", 0, "above zero"),
        ("chunks.count", 257, "257 chunks do not fit 256 dimensions"),
    ],
)
def test_impossible_values_are_named(key, value, message):
    with pytest.raises(ConfigError, match=message):
        build_config("faces32", options={key: value})


def test_a_layout_that_does_not_add_up_stops_before_anything_is_built():
    with pytest.raises(ChunkError, match="No chunk starts in the stage that ends at timestep 100"):
        build_config("faces32", options={"chunks.partition": "staged", "chunks.count": 8})
    with pytest.raises(ChunkError, match="the last must be 1000"):
        build_config("celeba64", options={"chunks.stage_ends": [1, 2, 3, 4, 5]})


@pytest.mark.parametrize(("name", "text"), [("a.toml", "seed = "), ("a.json", "{"), ("b.toml", None)])
def test_unreadable_settings_files(tmp_path, name, text):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="Cannot read the settings in") as error:
        build_config("faces32", file=file)
    assert str(file) in error.value.message


@pytest.mark.parametrize("text", ["[1, 2]", '"seed"', '{"config": 3}', "null"])
def test_a_settings_file_holds_settings(tmp_path, text):
    file = tmp_path / "list.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="Cannot read the settings in"):
        read_settings(file)


def test_a_binary_settings_file_is_unreadable(tmp_path):
    file = tmp_path / "weights.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="Cannot read the settings in"):
        read_settings(file)


@pytest.mark.parametrize("batch_size", [1, 32, 128, 4096])
def test_learning_rate_follows_the_global_batch(batch_size):
    stage = StageConfig(batch_size=batch_size, learning_rate=1e-4)
    assert stage.peak_learning_rate == pytest.approx(1e-4 * batch_size / 32)


def test_steps_round_up():
    assert StageConfig(images=129, batch_size=128).steps == 2
    assert StageConfig(images=128, batch_size=128).steps == 1


def test_k_1_is_uniform_whatever_the_partition():
    assert ChunksConfig(count=1).layout() == ChunksConfig(count=1, partition="uniform").layout()


def test_config_is_frozen_and_keyword_only():
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(TypeError):
        DataConfig("faces")


def test_every_setting_is_documented():
    for cls in (RunConfig, DataConfig, UNetConfig, ChunksConfig, StageConfig):
        source = inspect.getsource(cls)
        for field in dataclasses.fields(cls):
            after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 2)[1]
            assert after.strip().startswith('"""'), f"{cls.__name__}.{field.name} says nothing"
