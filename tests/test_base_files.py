"""Where a base may come from, and every way in which one can be broken."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

from diticli.errors import ModelError
from diticli.models.unet import load_base

WEIGHTS = "diffusion_pytorch_model.safetensors"


def assert_same_weights(a, b):
    shapes = [json.dumps({k: v for k, v in m.config.items() if not k.startswith("_")}) for m in (a, b)]
    assert shapes[0] == shapes[1]
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


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


def pickle_weights(root):
    torch.save(load_file(root / WEIGHTS), root / WEIGHTS.replace("safetensors", "bin"))
    (root / WEIGHTS).unlink()


DAMAGES = {
    "pickled weights": (pickle_weights, rf"no file named {WEIGHTS}"),
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
    assert "weights" not in damage or "safetensors weights" in error.value.remedy


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


def test_paths_may_start_at_home(make_unet, tmp_path, monkeypatch, no_network):
    save_bare(make_unet(), tmp_path / "base-model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path("~").expanduser() == tmp_path
    assert_same_weights(load_base("~/base-model")[0], make_unet())
