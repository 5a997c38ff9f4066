"""Where a base may come from, and every way in which one can be broken."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from diticli.errors import ModelError
from diticli.models.base_files import load_base
from diticli.models.gate import DEFAULTS
from diticli.models.pipeline import unet_to_diffusers
from diticli.models.shift_decoder import ShiftDecoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def make_unet(make_unet):
    """As the fixture of this name, but networks of diffusers: bases that others saved."""
    return lambda *shape, **others: unet_to_diffusers(make_unet(*shape, **others))


def assert_same_weights(a, b):
    settings = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (a, b)]
    shapes = [json.dumps(shape, sort_keys=True) for shape in settings]
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
    said = r"no folder 'someone/typo', no download .* Hub cannot be reached \(Name or service not known\)"
    with pytest.raises(ModelError, match=said) as error:
        load_base("someone/typo")
    assert "\n" not in str(error.value)
    assert "shipped, the model that comes with diti" in error.value.remedy


def test_what_was_meant_by_a_name_is_said(monkeypatch, tmp_path):
    def nowhere(*args, **kwargs):
        raise OSError("404 Client Error")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name, meant in (("mine", "Did you mean runs/mine?"), ("Shipped", "Did you mean shipped?"), ("other", "Give")):
        with pytest.raises(ModelError, match=r"none on the Hugging Face Hub \(404") as error:
            load_base(name)
        assert error.value.remedy.startswith(meant)


@pytest.mark.parametrize("name", ["a/b/c", "not a hub id!", "/no/such/folder"])
def test_load_base_of_what_can_be_no_name(name):
    with pytest.raises(ModelError, match=r"no folder .* not an id of the Hugging Face Hub") as error:
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
    "pickled weights": (pickle_weights, r"its weights are a pickle \(diffusion_pytorch_model\.bin\)"),
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
        "its blocks are Nope",
    ),
    "config of wrong types": (lambda r: rewrite_config(r, block_out_channels=8), "block_out_channels is no list"),
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
    with pytest.raises(ModelError, match="it is a SemanticEncoder"):
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


def ema_of(unet):
    """Other weights, as `EMAModel` saves them: its settings stand in the config."""
    average = EMAModel(unet.parameters(), model_cls=UNet2DModel, model_config=unet.config, use_ema_warmup=True)
    average.optimization_step = 7
    for shadow in average.shadow_params:
        shadow.mul_(0.5)
    return average


@pytest.fixture
def trained(make_unet, tmp_path, no_network):
    """A folder of diffusers' train_unconditional: a pipeline, and a checkpoint with raw and averaged weights."""
    unet, root = make_unet(), tmp_path / "trained"
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(root)
    unet.save_pretrained(root / "checkpoint-500" / "unet")
    ema_of(unet).save_pretrained(root / "checkpoint-500" / "unet_ema")
    return root


@pytest.mark.parametrize(
    ("where", "factor", "said"),
    [
        ("", 1.0, None),
        ("unet", 1.0, None),
        ("checkpoint-500", 0.5, "averaged weights are used"),
        ("checkpoint-500/unet_ema", 0.5, None),
        ("checkpoint-500/unet", 1.0, "holds the raw weights, as asked"),
    ],
)
def test_a_part_of_a_pipeline_is_read_with_its_schedule_and_its_averages(trained, make_unet, where, factor, said):
    lines = []
    unet, scheduler = load_base(str(trained / where), say=lines.append)
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert unet.config.keys() == {*DEFAULTS}
    expected = make_unet().state_dict()
    assert all(torch.equal(value, factor * expected[name]) for name, value in unet.state_dict().items())
    assert [said in line for line in lines] == [True] if said else lines == []
    ShiftDecoder.for_unet(unet, 16)


def test_a_part_is_found_from_within(trained, monkeypatch):
    monkeypatch.chdir(trained / "unet")
    assert load_base(".")[1].config.beta_schedule == "squaredcos_cap_v2"


def test_a_bare_unet_says_which_schedule_is_assumed(make_unet, tmp_path, no_network):
    lines = []
    make_unet().save_pretrained(tmp_path / "bare")
    scheduler = load_base(str(tmp_path / "bare"), say=lines.append)[1]
    assert (scheduler.config.beta_schedule, scheduler.config.beta_end) == ("linear", 0.02)
    assert [("DDPM paper is assumed" in line and "0.0001 to 0.02 over 1000" in line) for line in lines] == [True]


def name_parts(root, **parts):
    index = json.loads((root / "model_index.json").read_text())
    (root / "model_index.json").write_text(json.dumps(index | parts))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"vqvae": ["diffusers", "VQModel"]}, r"is a latent diffusion model \(vqvae\)"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, r"is a latent diffusion model \(vae\)"),
        ({"bert": ["transformers", "BertModel"]}, "whose UNet needs its bert"),
        ({"mel": ["diffusers", "Mel"]}, "whose UNet needs its mel"),
        ({"unet": [None, None]}, "has no unet"),
    ],
)
@pytest.mark.parametrize("where", ["", "unet", "checkpoint-500", "checkpoint-500/unet_ema"])
def test_a_unet_that_is_part_of_more_is_refused(trained, parts, message, where):
    name_parts(trained, **parts)
    with pytest.raises(ModelError, match=message):
        load_base(str(trained / where))


def test_a_unet_beside_parts_that_are_left_out_is_a_base(trained):
    name_parts(trained, vae=[None, None])
    assert load_base(str(trained))[0].config.sample_size == 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDPMScheduler", "predict_epsilon": False}, "predicts sample, the method needs noise"),
        ({"prediction_type": "v_prediction"}, "predicts v_prediction, the method needs noise"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}, "is not a schedule of betas"),
        ({"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000}, "it has no beta_start, beta_end"),
    ],
)
def test_schedulers_of_other_methods_are_refused(trained, config, message):
    path = trained / "scheduler" / "scheduler_config.json"
    stored = json.loads(path.read_text())
    stored.pop("prediction_type")
    path.write_text(json.dumps(config if "num_train_timesteps" in config else stored | config))
    for where in ("", "unet", "checkpoint-500"):
        with pytest.raises(ModelError, match=message):
            load_base(str(trained / where))


def test_predict_epsilon_true_is_noise(trained):
    path = trained / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"predict_epsilon": True}))
    assert load_base(str(trained))[1].config.beta_schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize("shard", [None, "8KB"])
def test_weights_of_half_precision_alone_are_read_and_said(make_unet, tmp_path, no_network, shard):
    unet, lines = make_unet(), []
    size = {} if shard is None else {"max_shard_size": shard}
    copy = UNet2DModel(**{k: v for k, v in unet.config.items() if not k.startswith("_")}).half()
    copy.load_state_dict(unet.state_dict())
    copy.save_pretrained(tmp_path / "unet", variant="fp16", **size)
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    loaded = load_base(str(tmp_path), say=lines.append)[0]
    assert [("fp16 weights only" in line) for line in lines] == [True]
    truth = unet.state_dict()
    assert all(torch.equal(value, truth[name].half().float()) for name, value in loaded.state_dict().items())
    if shard:
        index = tmp_path / "unet" / f"{WEIGHTS}.index.fp16.json"
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../outside.safetensors"}}))
        with pytest.raises(ModelError, match="names files that are no weights beside it"):
            load_base(str(tmp_path))


def test_another_variant_alone_is_refused_with_the_way_out(make_unet, tmp_path, no_network):
    make_unet().save_pretrained(tmp_path, variant="non_ema")
    with pytest.raises(ModelError, match="the weights of a variant only") as error:
        load_base(str(tmp_path))
    assert f"rename diffusion_pytorch_model.non_ema.safetensors to {WEIGHTS}" in error.value.remedy


def test_pickled_weights_are_refused_with_a_way_out_that_works(make_unet, tmp_path, no_network):
    unet = make_unet()
    save_bare(unet, tmp_path)
    pickle_weights(tmp_path)
    with pytest.raises(ModelError, match="pickle") as error:
        load_base(str(tmp_path))
    code = error.value.remedy.partition('-c "')[2].rpartition('"')[0]
    exec(code)
    assert_same_weights(load_base(str(tmp_path))[0], unet)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_base_whose_weights_are_not_finite_is_refused_as_such(make_unet, tmp_path, no_network, value):
    save_bare(make_unet(), tmp_path)
    rewrite_weights(tmp_path, lambda state: state["mid_block.resnets.0.conv1.weight"].view(-1)[3:4].fill_(value))
    with pytest.raises(ModelError, match=r"not finite .*mid_block\.resnets\.0\.conv1\.weight") as error:
        load_base(str(tmp_path))
    assert "diverged or its file is damaged" in error.value.remedy
