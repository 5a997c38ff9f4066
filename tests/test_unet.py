import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from tiny_models import UNET_SHAPES, tiny_unet_config

from diticli.errors import ConfigError, DeviceError, ModelError
from diticli.models.attention import use_fast_attention
from diticli.models.build import build_encoder, build_unet, new_scheduler
from diticli.models.unet import check_base, load_base, predict_noise, run_down_path
from diticli.settings import build_config, preset_names

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"asked the Hub for {args} {kwargs}")

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, refuse)
    monkeypatch.setattr(HfApi, "file_exists", refuse)
    monkeypatch.setattr(HfApi, "model_info", refuse)


def assert_same_weights(a, b):
    shapes = [json.dumps({k: v for k, v in m.config.items() if not k.startswith("_")}) for m in (a, b)]
    assert shapes[0] == shapes[1]
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_both_halves_are_the_whole(make_unet, shape):
    unet = make_unet(shape)
    x = torch.randn(3, 3, unet.config.sample_size, unet.config.sample_size)
    t = torch.tensor([0, 417, 999])
    with torch.no_grad():
        expected = unet(x, t).sample
        down = run_down_path(unet, x, t)
        assert torch.equal(predict_noise(unet, down), expected)
    assert len(down.skips) == sum(len(block.resnets) for block in unet.up_blocks)
    assert expected.abs().max() > 0.01


def test_halves_take_half_precision_as_the_whole_does(make_unet):
    unet = make_unet().to(torch.bfloat16)
    x, t = torch.randn(2, 3, 16, 16, dtype=torch.bfloat16), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(predict_noise(unet, run_down_path(unet, x, t)), unet(x, t).sample)
    unet.to(torch.float32)


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_every_shape_of_base_is_accepted_at_its_resolution_only(make_unet, shape):
    unet = make_unet(shape)
    size = unet.config.sample_size
    check_base(unet)
    check_base(unet, resolution=size)
    with pytest.raises(ModelError, match=f"trained at {size} px, the run wants 64 px") as error:
        check_base(unet, resolution=64)
    assert f"--resolution {size}" in error.value.remedy


def test_sizes_may_be_written_as_pairs_or_left_out():
    check_base(UNet2DModel(**tiny_unet_config(size=(16, 16))), resolution=16)
    check_base(UNet2DModel(**tiny_unet_config(size=None)), resolution=16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"time_embedding_type": "fourier"}, "fourier time embedding"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, "learned time embedding"),
        ({"num_class_embeds": 10}, "class-conditional"),
        ({"class_embed_type": "timestep"}, "class-conditional"),
        ({"out_channels": 6}, r"predicts a variance \(6 outputs for 3 inputs\)"),
        ({"in_channels": 1, "out_channels": 1}, "1 input and 1 output channels, images have 3"),
        ({"in_channels": 4, "out_channels": 4}, "4 input and 4 output channels"),
        (
            {
                "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
                "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
                "channels": (32, 32),
            },
            "skip convolutions",
        ),
    ],
)
def test_bases_that_the_method_cannot_stand_on(config, message):
    with pytest.raises(ModelError, match=message) as error:
        check_base(UNet2DModel(**tiny_unet_config(**config)))
    assert "unconditional UNet2DModel" in error.value.remedy


def save_bare(unet, root):
    unet.save_pretrained(root)
    return root


def save_bare_with_scheduler(unet, root):
    DDPMScheduler(beta_end=0.03).save_pretrained(root)
    return save_bare(unet, root)


def save_pipeline(unet, root):
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(beta_end=0.03)).save_pretrained(root)
    return root


def save_run(unet, root):
    save_pipeline(unet, root / "base")
    return root


def save_ddim(unet, root):
    save_bare(unet, root / "unet")
    DDIMScheduler(beta_end=0.03).save_pretrained(root / "scheduler")
    return root


@pytest.mark.parametrize(
    ("save", "beta_end"),
    [
        (save_bare, 0.02),
        (save_bare_with_scheduler, 0.03),
        (save_pipeline, 0.03),
        (save_run, 0.03),
        (save_ddim, 0.03),
    ],
)
def test_load_base_takes_every_layout(make_unet, tmp_path, no_network, save, beta_end):
    unet = make_unet()
    loaded, scheduler = load_base(str(save(unet, tmp_path / "saved")), resolution=16)
    assert_same_weights(loaded, unet)
    assert isinstance(scheduler, DDPMScheduler)
    assert scheduler.config.beta_end == beta_end
    assert (scheduler.config.num_train_timesteps, scheduler.config.beta_schedule) == (1000, "linear")
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_load_base_reads_the_attention_names_of_older_checkpoints(make_unet, tmp_path, no_network):
    """google/ddpm-* were saved with `query`, `key`, `value` and `proj_attn`."""
    unet = make_unet("ddpm-cifar10-32")
    save_bare(unet, tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / WEIGHTS)
    for new, name in old.items():
        state = {k.replace(f".{new}.", f".{name}."): v for k, v in state.items()}
    assert any(".proj_attn." in key for key in state)
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert_same_weights(load_base(str(tmp_path))[0], unet)


def test_load_base_of_a_hub_id_takes_the_snapshot_without_code_or_pickles(make_unet, tmp_path, monkeypatch):
    save_pipeline(make_unet(), tmp_path)
    asked = {}

    def snapshot(repo_id, *, allow_patterns):
        asked.update(repo_id=repo_id, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    unet, scheduler = load_base("someone/some-base")
    assert_same_weights(unet, make_unet())
    assert scheduler.config.beta_end == 0.03
    assert asked["repo_id"] == "someone/some-base"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked["patterns"])


def test_load_base_says_so_when_the_hub_is_out_of_reach(monkeypatch):
    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"no model 'someone/typo' here or on the Hub: Name or service") as error:
        load_base("someone/typo")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b/c", "not a hub id!", "/no/such/folder"])
def test_load_base_of_what_can_be_no_name(name):
    with pytest.raises(ModelError, match=r"no folder .* not a Hub id") as error:
        load_base(name)
    assert name in error.value.message


def rewrite_config(root, **changes):
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | changes))


def rewrite_weights(root, change):
    state = load_file(root / WEIGHTS)
    change(state)
    save_file(state, root / WEIGHTS, metadata={"format": "pt"})


DAMAGES = {
    "empty weights": (lambda r: (r / WEIGHTS).write_bytes(b""), "Cannot load a base"),
    "truncated weights": (
        lambda r: (r / WEIGHTS).write_bytes((r / WEIGHTS).read_bytes()[:5000]),
        "Cannot load a base",
    ),
    "no weights": (lambda r: (r / WEIGHTS).unlink(), "Cannot load a base"),
    "missing tensor": (
        lambda r: rewrite_weights(r, lambda s: s.pop("conv_in.weight")),
        r"missing \['conv_in.weight'\], left over \[\]",
    ),
    "extra tensor": (
        lambda r: rewrite_weights(r, lambda s: s.update(foreign=torch.ones(2))),
        r"missing \[\], left over \['foreign'\]",
    ),
    "tensor of another shape": (
        lambda r: rewrite_weights(r, lambda s: s.update({"conv_in.weight": torch.zeros(4, 3, 3, 3)})),
        "conv_in.weight expected shape",
    ),
    "no config": (lambda r: (r / "config.json").unlink(), "no file named config.json"),
    "config that is no JSON": (lambda r: (r / "config.json").write_text("{oops"), "not a valid JSON"),
    "config of unknown blocks": (
        lambda r: rewrite_config(r, down_block_types=["Nope", "Nope"]),
        "Nope does not exist",
    ),
    "config of wrong types": (lambda r: rewrite_config(r, block_out_channels=8), "Cannot load a base"),
    "config that does not divide": (lambda r: rewrite_config(r, block_out_channels=[9, 18]), "divisible"),
    "scheduler that is no JSON": (
        lambda r: (r / "scheduler_config.json").write_text("{"),
        "Cannot read the scheduler",
    ),
    "scheduler for something else": (
        lambda r: DDPMScheduler(prediction_type="v_prediction").save_pretrained(r),
        "predicts v_prediction, the method needs noise",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_damaged_bases_are_errors_of_one_line(make_unet, tmp_path, no_network, damage):
    break_it, message = DAMAGES[damage]
    save_bare(make_unet(), tmp_path)
    break_it(tmp_path)
    with pytest.raises(ModelError, match=message) as error:
        load_base(str(tmp_path))
    assert "\n" not in error.value.message


def test_an_empty_folder_a_file_and_a_foreign_model_are_no_base(make_pipeline, tmp_path, no_network):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"x")
    make_pipeline().encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match=r"no file named config\.json"):
        load_base(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="is a file"):
        load_base(str(tmp_path / "file.safetensors"))
    with pytest.raises(ModelError, match="are not those of its config"):
        load_base(str(tmp_path / "encoder"))


def test_load_base_refuses_what_check_base_refuses(make_unet, tmp_path, no_network):
    save_bare(make_unet(), tmp_path)
    with pytest.raises(ModelError, match="trained at 16 px, the run wants 32 px"):
        load_base(str(tmp_path), resolution=32)


@pytest.mark.parametrize("preset", preset_names())
def test_presets_build_networks_that_pass_for_a_base(preset):
    config = build_config(preset)
    with torch.device("meta"):
        unet = build_unet(config.unet, config.data.resolution)
        encoder = build_encoder(config)
    check_base(unet, resolution=config.data.resolution)
    assert len(encoder.convs) == len(config.encoder.widths)
    names = [*unet.config.down_block_types, *unet.config.up_block_types]
    sizes = [config.data.resolution // 2**i for i in range(len(config.unet.channels))]
    with_attention = [size in config.unet.attention_sizes for size in sizes]
    assert [name.startswith("Attn") for name in names] == with_attention + with_attention[::-1]
    resnet = config.unet.resampling == "resnet"
    samplers = [block.downsamplers[0] for block in unet.down_blocks if block.downsamplers]
    assert all((type(s).__name__ == "ResnetBlock2D") == resnet for s in samplers)
    groups = {m.num_groups for m in unet.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {config.unet.norm_groups}


def test_the_schedule_of_new_bases_is_the_ddpm_papers():
    config = new_scheduler().config
    assert (config.num_train_timesteps, config.beta_start, config.beta_end) == (1000, 1e-4, 0.02)
    assert (config.beta_schedule, config.prediction_type) == ("linear", "epsilon")


@pytest.mark.parametrize(("choice", "reason"), [("auto", "no operator"), ("sdpa", "DITI_ATTENTION=sdpa")])
def test_attention_on_the_cpu_is_pytorchs_own(make_unet, monkeypatch, choice, reason):
    monkeypatch.setenv("DITI_ATTENTION", choice)
    unet, x, t = make_unet(), torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    before = unet(x, t).sample
    chosen = use_fast_attention(unet, device=torch.device("cpu"))
    assert list(chosen) == ["4 heads of 4"]
    assert chosen["4 heads of 4"].startswith("sdpa (")
    assert reason in chosen["4 heads of 4"]
    torch.testing.assert_close(unet(x, t).sample, before)


def test_attention_that_cannot_be_had_is_refused(make_unet, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("DITI_ATTENTION", "xformers")
    with pytest.raises(DeviceError, match="cannot be used: xformers has no operator for this device"):
        use_fast_attention(make_unet(), device=cpu)
    monkeypatch.setenv("DITI_ATTENTION", "flash")
    with pytest.raises(ConfigError, match="DITI_ATTENTION='flash' is unknown") as error:
        use_fast_attention(make_unet(), device=cpu)
    assert "auto, xformers, sdpa" in error.value.remedy


def test_paths_may_start_at_home(make_unet, tmp_path, monkeypatch, no_network):
    save_bare(make_unet(), tmp_path / "base-model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path("~").expanduser() == tmp_path
    assert_same_weights(load_base("~/base-model")[0], make_unet())
