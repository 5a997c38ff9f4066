"""Saving, loading, and what must not be loaded."""

import json
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_models import LATENT_DIM, SIZE

import diticli
from diticli.errors import ChunkError, ModelError
from diticli.models.pipeline import DiTiPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
T = torch.tensor([10, 300, 600, 990])


@pytest.fixture(scope="module")
def pipeline(make_pipeline):
    return make_pipeline()


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    """A run directory with the pipeline under model/."""
    run = tmp_path_factory.mktemp("run")
    pipeline.save_pretrained(run / "model")
    return run


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved pipeline that may be damaged."""
    folder = tmp_path / "copy"
    for file in (saved / "model").rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(saved / "model")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return folder


def tensors(count=4):
    return torch.empty(count, 3, SIZE, SIZE).uniform_(-1, 1)


def assert_same_model(a, b):
    x, z = tensors(), torch.randn(4, LATENT_DIM)
    assert torch.equal(a.encode(x), b.encode(x))
    for mine, theirs in zip(a.predict(x, T, z), b.predict(x, T, z), strict=True):
        assert torch.equal(mine, theirs)
    assert a.chunks == b.chunks
    assert a.model_hash == b.model_hash
    assert a.config.shift_form == b.config.shift_form


def change_index(folder, **entries):
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))


def test_round_trip(pipeline, saved, no_network):
    loaded = DiTiPipeline.from_pretrained(saved / "model")
    assert_same_model(loaded, pipeline)
    assert loaded.model_id == str(saved / "model")
    assert isinstance(loaded.scheduler, DDIMScheduler)
    for module in (loaded.unet, loaded.encoder, loaded.shift_decoder):
        assert not module.training


def test_a_run_directory_names_its_model(pipeline, saved, no_network):
    assert_same_model(DiTiPipeline.from_pretrained(str(saved)), pipeline)


def test_index_names_our_classes_under_the_packages_name(saved):
    index = json.loads((saved / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "DiTiPipeline"
    assert index["encoder"] == ["diticli", "SemanticEncoder"]
    assert index["shift_decoder"] == ["diticli", "ShiftDecoder"]
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["chunk_layout"] == {
        "timestep_ends": [250, 500, 750, 1000],
        "ends": [4, 8, 12, 16],
        "visible": "prefix",
    }
    assert not [p for p in (saved / "model").rglob("*") if p.suffix not in (".json", ".safetensors", "")]


def test_everything_survives_a_second_round(saved, pipeline, tmp_path, no_network):
    DiTiPipeline.from_pretrained(saved).save_pretrained(tmp_path)
    assert_same_model(DiTiPipeline.from_pretrained(tmp_path), pipeline)


def test_shift_form_is_kept(make_pipeline, tmp_path, no_network):
    make_pipeline(shift_form="posterior").save_pretrained(tmp_path)
    assert DiTiPipeline.from_pretrained(tmp_path).config.shift_form == "posterior"


@pytest.mark.slow
def test_a_fresh_process_loads_it_by_the_packages_name(saved):
    code = (
        "from diticli import DiTiPipeline; import sys, torch; p = DiTiPipeline.from_pretrained(sys.argv[1]); "
        f"print(tuple(p.encode(torch.zeros(2, 3, {SIZE}, {SIZE})).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code, saved], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == f"(2, {LATENT_DIM})"


def test_a_hub_id_goes_through_a_snapshot_without_code_or_pickles(saved, pipeline, monkeypatch):
    asked = {}

    def snapshot(repo_id, *, allow_patterns):
        asked.update(repo_id=repo_id, patterns=allow_patterns)
        return str(saved / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    loaded = DiTiPipeline.from_pretrained("someone/some-model")
    assert_same_model(loaded, pipeline)
    assert loaded.model_id == asked["repo_id"] == "someone/some-model"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked["patterns"])


def test_it_is_a_diffusers_pipeline():
    assert issubclass(DiTiPipeline, DiffusionPipeline)
    assert callable(DiTiPipeline.push_to_hub)
    assert diticli.DiTiPipeline is DiTiPipeline


@pytest.mark.parametrize(
    "entry",
    [
        {"encoder": ["os", "system"]},
        {"encoder": ["transformers", "CLIPModel"]},
        {"_class_name": ["evil", "Evil"]},
        {"_class_name": ["evil", "Evil", "more"]},
        {"more": ["evil"]},
        {"encoder": [["nested"], "x"]},
    ],
)
def test_an_index_that_names_foreign_code_is_refused(copy, entry):
    change_index(copy, **entry)
    with pytest.raises(ModelError, match="names code outside diffusers and diticli") as error:
        DiTiPipeline.from_pretrained(copy)
    assert "refuse it" in error.value.remedy


@pytest.mark.parametrize("where", ["evil.py", "encoder/diticli.py", "unet/diffusers.py"])
def test_code_beside_the_weights_is_never_run(copy, tmp_path, where):
    mark = tmp_path / "ran"
    (copy / where).write_text(f"open({str(mark)!r}, 'w').close()\nclass SemanticEncoder: pass\n")
    with pytest.raises(ModelError, match=f"names code outside diffusers and diticli.*{where}"):
        DiTiPipeline.from_pretrained(copy, trust_remote_code=True)
    assert not mark.exists()


def damage_weights(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def pickle_weights(folder):
    torch.save(load_file(folder / WEIGHTS), folder / WEIGHTS.replace("safetensors", "bin"))
    (folder / WEIGHTS).unlink()


DAMAGES = {
    **{f"pickled {p}": (lambda f, p=p: pickle_weights(f / p), f"no file named {WEIGHTS}") for p in ("encoder", "unet")},
    "layout of endless time": (
        lambda f: change_index(f, chunk_layout={"ends": [LATENT_DIM], "timestep_ends": [10**15]}),
        "at most 100,000 timesteps",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "holds no model"),
    "index that is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "Cannot read"),
    "index that is a list": (lambda f: (f / "model_index.json").write_text("[1]"), "Cannot read"),
    "index in another encoding": (
        lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe{"),
        "Cannot read",
    ),
    "no layout": (lambda f: change_index(f, chunk_layout=None), "needs its chunk layout"),
    "layout that does not add up": (
        lambda f: change_index(f, chunk_layout={"ends": [4, 2], "timestep_ends": [500, 1000]}),
        "not strictly increasing",
    ),
    "layout of another width": (
        lambda f: change_index(f, chunk_layout={"ends": [8], "timestep_ends": [1000]}),
        "disagree on the latent dim",
    ),
    "no encoder": (lambda f: change_index(f, encoder=[None, None]), "Cannot load the model"),
    "encoder of another class": (
        lambda f: change_index(f, encoder=["diticli", "ShiftDecoder"]),
        "A ShiftDecoder has settings that are unknown here",
    ),
    "class that does not exist": (
        lambda f: change_index(f, encoder=["diticli", "NoSuchEncoder"]),
        "Cannot load the model",
    ),
    "empty weights": (lambda f: (f / "encoder" / WEIGHTS).write_bytes(b""), "Cannot load the model"),
    "truncated weights": (
        lambda f: (f / "unet" / WEIGHTS).write_bytes((f / "unet" / WEIGHTS).read_bytes()[:4000]),
        "Cannot load the model",
    ),
    "no weights": (lambda f: (f / "shift_decoder" / WEIGHTS).unlink(), "Cannot load the model"),
    "missing tensor": (
        lambda f: damage_weights(f / "encoder", lambda s: s.pop("head.bias")),
        r"encoder lacks weights: \['head.bias'\]",
    ),
    "no config": (lambda f: (f / "encoder" / "config.json").unlink(), "Cannot load the model"),
    "no part": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "Cannot load the model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_damaged_models_are_errors_of_one_line(copy, no_network, damage):
    break_it, message = DAMAGES[damage]
    break_it(copy)
    with pytest.raises((ModelError, ChunkError), match=message) as error:
        DiTiPipeline.from_pretrained(copy)
    assert "\n" not in str(error.value)
    assert "pickled" not in damage or "must be safetensors" in error.value.remedy


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "not an id!"])
def test_names_that_can_be_no_model(name):
    with pytest.raises(ModelError, match="There is no folder") as error:
        DiTiPipeline.from_pretrained(name)
    assert name in error.value.message


def test_an_empty_folder_holds_no_model(tmp_path, no_network):
    with pytest.raises(ModelError, match="holds no model") as error:
        DiTiPipeline.from_pretrained(tmp_path)
    assert "diti train" in error.value.remedy
