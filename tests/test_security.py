"""Hostile files: no pickle runs, no path climbs out, no picture fills the memory, no model brings code along."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from code_scan import findings, writes
from hostile_files import PickleBomb, deep_json, edit_json, pickle_bombs
from safetensors.torch import load_file, save_file

from diticli.errors import CheckpointError, FeatureFileError, ModelError
from diticli.features.read import read_features
from diticli.models.base_files import load_base
from diticli.models.pipeline import DiTiPipeline
from diticli.official.files import load_checkpoint as load_official
from diticli.probing.directions import read_parts
from diticli.probing.linear_probe import load_probe
from diticli.training.checkpoint import Checkpoint, drop_other_stages, load_checkpoint, save_checkpoint, sealed

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Names from tables within the package itself, none from data.
OWN_IMPORTS = {
    "diticli/__init__.py",
    "diticli/sampling/__init__.py",
    "diticli/doctor/diagnose.py",
    "diticli/commands/lazy.py",
}


def package_sources():
    for package in ("diticli", "diti_kernels"):
        root = Path(importlib.util.find_spec(package).origin).parent
        yield from ((f"{package}/{path.relative_to(root).as_posix()}", path) for path in sorted(root.rglob("*.py")))


def test_the_code_runs_no_code_from_data():
    sources = dict(package_sources())
    assert len(sources) > 100
    found = [line for name, path in sources.items() for line in findings(path.read_text(encoding="utf-8"), name)]
    computed = {line.split(":")[0] for line in found if line.endswith("import_module of a computed name")}
    assert computed == OWN_IMPORTS & set(sources)
    others = [line for line in found if line.split(":")[0] not in OWN_IMPORTS]
    assert [line.split(":")[0] for line in others if "something else than" in line] == [COMPILER]
    assert len(found) == len(computed) + 1


COMPILER = "diti_kernels/native.py"  # starts a C compiler, in a folder of its own, and no Python
TOOLS = {"benchmarks/resources.py"}  # starts a disassembler of CUDA that Triton brings, and no Python


def test_children_of_the_benchmarks_are_isolated():
    folder = Path(__file__).parents[1] / "benchmarks"
    sources = {f"benchmarks/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*.py"))}
    assert "benchmarks/children.py" in sources
    found = [line for name, path in sources.items() for line in findings(path.read_text(encoding="utf-8"), name)]
    assert {line.split(":")[0] for line in found if "something else than" in line} == TOOLS
    others = [line for line in found if "something else than" not in line]
    assert {line.split(":")[0] for line in others} == {"benchmarks/__main__.py"}, "which imports what its table names"


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "list(map(eval, texts))",
        "import pickle",
        "from pickle import loads as read\nread(data)",
        "import numpy as n\nn.load(path)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "from torch import load\nload(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "tar.extractall(folder)",
        "import os as o\no.system(line)",
        "subprocess.run(line, shell=True)",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', code])",
        "from subprocess import Popen\nPopen(command)",
        "import subprocess, sys\ncommand = [sys.executable, '-m', 'x']\nsubprocess.run(command)",
        "import subprocess, sys\nc = [sys.executable, '-P']\nc = ['python', '-m', 'x']\nsubprocess.run(c)",
        "import subprocess, sys\nsubprocess.call([sys.executable, '-m', 'pip'])",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-P', '-c', code])",
        "import asyncio\nasyncio.create_subprocess_exec('python')",
        "Model.from_pretrained(name, trust_remote_code=True)",
        "Model.from_pretrained(name, custom_pipeline=name)",
        "import importlib\nimportlib.import_module(name)",
        "Image.open(path)",
    ],
)
def test_the_scan_would_see_it(line):
    assert findings(line)


def test_the_scan_lets_isolated_children_pass():
    assert findings("import subprocess, sys\nsubprocess.run([sys.executable, '-P', '-c', code], cwd=own)") == []
    lines = "import subprocess, sys\ncommand = [sys.executable, '-I', *words]\nsubprocess.Popen(command, cwd=own)"
    assert findings(lines) == []


# writing

OTHER_WRITERS = {
    "diticli/files.py",  # how anything is written
    "diti_kernels/native.py",  # in a folder that only the user may write to
}


def test_nothing_is_written_past_one_module():
    found = [line for name, path in package_sources() for line in writes(path.read_text(encoding="utf-8"), name)]
    assert {line.split(":")[0] for line in found} == OTHER_WRITERS, found


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, mode)",
        "path.open('x')",
        "path.write_text(text)",
        "path.write_bytes(data)",
        "beside.replace(path)",
        "os.replace(beside, path)",
        "from os import rename as move\nmove(a, b)",
        "picture.save(path, format='PNG')",
        "np.save(path, values, allow_pickle=False)",
        "np.savez(str(path), a=values)",
        "from safetensors.torch import save_file\nsave_file(tensors, path)",
        "torch.save(state, file)",
        "json.dump(data, target)",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "shutil.copyfile(a, b)",
        "figure.savefig(path)",
    ],
)
def test_the_scan_would_see_writing(line):
    assert writes(line)


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'rb')",
        "path.open()",
        "Image.open(path, formats=('PNG',))",
        "tarfile.open(fileobj=file, mode='r:')",
        "text.replace('a', 'b')",
        "date.replace(year=1)",
        "picture.save(file, format='PNG')",
        "os.open(path, os.O_RDONLY | os.O_CLOEXEC)",
    ],
)
def test_the_scan_lets_reading_pass(line):
    assert writes(line) == []


# pickles


@pytest.fixture
def mark(tmp_path):
    """Where a bomb that ran would leave a folder; none may be there in the end."""
    path = tmp_path / "a bomb ran"
    yield path
    assert not path.exists()


def test_the_bombs_are_live(tmp_path):
    with contextlib.suppress(Exception):  # PyTorch's oldest format holds several
        pickle.loads(pickle_bombs(tmp_path / "ran")["plain"])  # noqa: S301
    assert (tmp_path / "ran").is_dir()
    np.load(io.BytesIO(pickle_bombs(tmp_path / "np")["npy"]), allow_pickle=True)
    assert (tmp_path / "np").is_dir()
    torch.load(io.BytesIO(pickle_bombs(tmp_path / "torch")["torch"]), weights_only=False)
    assert (tmp_path / "torch").is_dir()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet"])
def test_features_are_never_unpickled(tmp_path, mark, suffix):
    for data in pickle_bombs(mark).values():
        path = tmp_path / f"feats{suffix}"
        path.write_bytes(data)
        with pytest.raises(FeatureFileError, match="damaged") as caught:
            read_features(path)
        assert caught.value.remedy


def test_parquet_of_a_pickled_type_is_read_as_plain_numbers(tmp_path, mark):
    """Arrow before 14.0.1 unpickled this (CVE-2023-47248)."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(PickleBomb(mark)),
    }
    lists = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4], pa.float32()), 2)
    schema = pa.schema([pa.field("features", lists.type, metadata=metadata)])
    pq.write_table(pa.table([lists], schema=schema), tmp_path / "feats.parquet")
    assert read_features(tmp_path / "feats.parquet").values.tolist() == [[1, 2], [3, 4]]


def test_probes_and_directions_are_never_unpickled(tmp_path, mark):
    for data in pickle_bombs(mark).values():
        (tmp_path / "probe.safetensors").write_bytes(data)
        with pytest.raises(FeatureFileError):
            load_probe(tmp_path / "probe.safetensors")
        (tmp_path / "directions.safetensors").write_bytes(data)
        facts = {"format": "diti-directions/1", "tensors_sha256": hashlib.sha256(data).hexdigest()}
        (tmp_path / "directions.json").write_text(json.dumps(facts))
        with pytest.raises(FeatureFileError, match="damaged"):
            read_parts(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_official_checkpoints_are_refused_with_what_to_do(tmp_path, mark):
    for kind, data in pickle_bombs(mark).items():
        (tmp_path / "latest.pt").write_bytes(data)
        with pytest.raises(ModelError, match=r"is refused: its pickle wants|is damaged") as caught:
            load_official(tmp_path / "latest.pt")
        assert caught.value.remedy
        if kind in ("torch", "torch before 1.6"):
            assert "os.mkdir" in caught.value.message or "posix.mkdir" in caught.value.message
            assert "with nothing in it but tensors" in caught.value.remedy


@pytest.fixture
def checkpoint(tmp_path):
    state = {"stage": "base", "step": 7}
    return save_checkpoint(tmp_path / "checkpoints", Checkpoint({"weights": {"w": torch.ones(2)}}, state))


def edit_state(checkpoint, sums):
    """Other checksums, under a seal that fits them."""
    state = json.loads((checkpoint / "state.json").read_bytes())
    (checkpoint / "state.json").write_text(json.dumps(sealed(state | {"sha256": sums})))


def test_checkpoints_are_never_unpickled(checkpoint, mark):
    for data in pickle_bombs(mark).values():
        (checkpoint / "weights.safetensors").write_bytes(data)
        edit_state(checkpoint, {"weights.safetensors": hashlib.sha256(data).hexdigest()})
        with pytest.raises(CheckpointError, match="Cannot read the checkpoint") as caught:
            load_checkpoint(checkpoint)
        assert str(checkpoint) in caught.value.remedy


@pytest.mark.parametrize("step", [-1, 10**40, True, 1.5, "7", None])
def test_a_checkpoints_step_is_a_count(checkpoint, step):
    state = json.loads((checkpoint / "state.json").read_bytes())
    (checkpoint / "state.json").write_text(json.dumps(sealed(state | {"step": step})))
    with pytest.raises(CheckpointError, match="Cannot read the checkpoint") as caught:
        load_checkpoint(checkpoint)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors"])
def test_a_checkpoint_of_named_pipes_is_refused(checkpoint, name):
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/outside.safetensors", "a/b.safetensors", "state.json", ""]
)
def test_a_checkpoints_state_names_no_other_file(checkpoint, tmp_path, name):
    shutil.copy(checkpoint / "weights.safetensors", checkpoint.parent / "outside.safetensors")
    digest = hashlib.sha256((checkpoint / "weights.safetensors").read_bytes()).hexdigest()
    edit_state(checkpoint, {name: digest})
    with pytest.raises(CheckpointError, match=r"Cannot read the checkpoint.*names") as caught:
        load_checkpoint(checkpoint)
    assert caught.value.remedy


@pytest.mark.parametrize("text", [b"", b"[1]", b"{}", b'{"sha256": [1]}', b'{"sha256": {}, "stage": 3}', deep_json()])
def test_a_damaged_state_is_named_and_not_tidied_away(checkpoint, text):
    if text[:1] == b"{" and len(text) < 100:
        text = json.dumps(sealed(json.loads(text))).encode()  # beyond what the seal would find
    (checkpoint / "state.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="Cannot read the checkpoint"):
        load_checkpoint(checkpoint)
    drop_other_stages(checkpoint.parent, "features")
    assert checkpoint.is_dir()


# models


@pytest.fixture(scope="module")
def saved(make_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path, no_network):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", WEIGHTS])
@pytest.mark.parametrize("part", ["encoder", "unet"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_weights_are_never_unpickled(model, mark, part, name):
    (model / part / WEIGHTS).unlink()
    for kind in ("plain", "torch", "torch before 1.6"):
        (model / part / name).write_bytes(pickle_bombs(mark)[kind])
        with pytest.raises(ModelError, match="Cannot load the model"):
            DiTiPipeline.from_pretrained(model)
        if part == "unet":
            with pytest.raises(ModelError, match="Cannot load a base"):
                load_base(str(model))


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64])
@pytest.mark.parametrize("part", ["encoder", "unet", "shift_decoder"])
def test_weights_are_floating_point_numbers(model, part, kind):
    tensors = load_file(model / part / WEIGHTS)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name].to(kind)}, model / part / WEIGHTS)
    with pytest.raises(ModelError, match="which are no weights") as caught:
        DiTiPipeline.from_pretrained(model)
    assert repr(name) in caught.value.message


@pytest.mark.parametrize(
    "head",
    [
        (2**40).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"[" * 10,
        (0).to_bytes(8, "little"),
        b"",
        json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode(),
        json.dumps({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"w" * 10**5: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        json.dumps(
            {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"a": "b" * 10**6}}
        ).encode(),
        json.dumps({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode(),
    ],
)
def test_headers_of_weights_are_held_against_the_file(model, tmp_path, head):
    """Whatever a header declares, little is read and the message is short."""
    data = head if head[:1] != b"{" else len(head).to_bytes(8, "little") + head + bytes(4)
    for place, read, kind in (
        (model / "encoder" / WEIGHTS, lambda: DiTiPipeline.from_pretrained(model), ModelError),
        (tmp_path / "feats.safetensors", lambda: read_features(tmp_path / "feats.safetensors"), FeatureFileError),
        (tmp_path / "probe.safetensors", lambda: load_probe(tmp_path / "probe.safetensors"), FeatureFileError),
    ):
        place.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(kind) as caught:
                read()
            assert tracemalloc.get_traced_memory()[1] < 2**26
        finally:
            tracemalloc.stop()
        assert len(str(caught.value)) < 1500


def code(mark, kind="Evil"):
    return f"import os\nos.mkdir({str(mark)!r})\nclass {kind}: pass\n"


def test_a_pipeline_within_the_pipeline_cannot_name_code(model, mark):
    """Diffusers would load the inner one by its own index, which nobody looked at."""
    edit_json(model / "model_index.json", unet=["diffusers", "DiffusionPipeline"])
    inner = {"_class_name": "DiffusionPipeline", "part": ["evil", "Evil"]}
    (model / "unet" / "model_index.json").write_text(json.dumps(inner))
    (model / "unet" / "part").mkdir()
    (model / "unet" / "part" / "evil.txt").write_text("no code")
    with pytest.raises(ModelError, match=r"diffusers\.DiffusionPipeline"):
        DiTiPipeline.from_pretrained(model)


@pytest.mark.parametrize("where", ["pipeline.py", "unet/evil.py", "unet/part/evil.py", "a/b/c/evil.py"])
def test_code_at_any_depth_is_refused(model, mark, where):
    (model / where).parent.mkdir(parents=True, exist_ok=True)
    (model / where).write_text(code(mark))
    with pytest.raises(ModelError, match=where):
        DiTiPipeline.from_pretrained(model, trust_remote_code=True)


@pytest.mark.parametrize("entry", [["diffusers", "../evil"], ["diffusers", "UNet2DModel", "evil"], ["diffusers"]])
def test_parts_of_no_diti_model_are_refused(model, entry):
    edit_json(model / "model_index.json", unet=entry)
    with pytest.raises(ModelError, match="parts of no DiTi model"):
        DiTiPipeline.from_pretrained(model)


def test_configs_cannot_import_code(model, mark):
    """Keys by which transformers and diffusers find code are read past, and in a network's config refused."""
    hints = {"_class_name": "Evil", "auto_map": {"AutoModel": "evil.Evil", "UNet2DModel": "evil--evil.Evil"}}
    edit_json(model / "scheduler/scheduler_config.json", **hints, custom_pipeline="evil", trust_remote_code=True)
    edit_json(model / "model_index.json", custom_pipeline="evil", auto_map=hints["auto_map"])
    assert DiTiPipeline.from_pretrained(model).config.crop == "center"
    (model / "unet" / "evil.py").write_text(code(mark))
    assert load_base(str(model))[0].config.sample_size == 16
    (model / "unet" / "evil.py").unlink()
    encoder = json.loads((model / "encoder/config.json").read_text())
    edit_json(model / "encoder/config.json", **hints)
    with pytest.raises(ModelError, match=r"unknown here \(auto_map\)"):
        DiTiPipeline.from_pretrained(model)
    (model / "encoder/config.json").write_text(json.dumps(encoder))
    for others in ({"_class_name": "Evil"}, {"_class_name": "UNet2DModel", "auto_map": hints["auto_map"]}):
        edit_json(model / "unet/config.json", **others)
        for load in (DiTiPipeline.from_pretrained, load_base):
            with pytest.raises(ModelError, match=r"it is a Evil|unknown here \(auto_map\)"):
                load(str(model))


@pytest.mark.parametrize(
    "target", ["../../outside.safetensors", "/etc/outside.safetensors", "a\\b.safetensors", "x.bin"]
)
def test_split_weights_stay_in_their_folder(model, tmp_path, target):
    shutil.move(model / "unet" / WEIGHTS, tmp_path / "outside.safetensors")
    index = model / "unet" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": target}}))
    for load in (DiTiPipeline.from_pretrained, load_base):
        with pytest.raises(ModelError, match="names files that are no weights beside it"):
            load(str(model))
    for damaged in (b"[]", b'{"weight_map": 3}', b"{}", deep_json()):
        index.write_bytes(damaged)
        with pytest.raises(ModelError, match="Cannot read"):
            load_base(str(model))
