"""Who a model is, and what kept results are kept under."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from diticli import identity
from diticli.comparison.settings import CompareSettings
from diticli.comparison.swaps import SwapStore
from diticli.errors import DataError, ModelError
from diticli.models.identity import FORM, weights_digest
from diticli.models.load import load_model
from diticli.models.pipeline import DiTiPipeline
from diticli.probing.directions import Directions


def test_everything_that_changes_a_picture_changes_the_hash(make_pipeline, make_unet):
    hashes = [
        make_pipeline().model_hash,
        make_pipeline(shift_form="posterior").model_hash,
        make_pipeline(crop="celeba").model_hash,
        make_pipeline(scheduler=DDIMScheduler(beta_start=2e-4)).model_hash,
        make_pipeline(scheduler=DDIMScheduler(beta_end=0.03)).model_hash,
    ]
    heads = make_pipeline()
    heads.unet.config["attention_heads"] = 2
    assert len({*hashes, heads.model_hash}) == len(hashes) + 1
    assert all(digits.startswith(FORM) for digits in hashes)


def test_where_a_model_lies_does_not(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    for name in ("a", "b"):
        pipeline.save_pretrained(tmp_path / name)
    loaded = [DiTiPipeline.from_pretrained(tmp_path / "a"), load_model(str(tmp_path / "b"), "cpu")]
    assert {model.model_hash for model in loaded} == {pipeline.model_hash}


def test_half_precision_is_another_model(make_pipeline):
    assert make_pipeline().to(torch.bfloat16).model_hash != make_pipeline().model_hash


def test_a_hash_of_older_files_is_compared_in_its_own_form(make_pipeline):
    """Features and directions made before the hash held all settings still belong to their model, and to no other."""
    pipeline, other = make_pipeline(), make_pipeline()
    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.1)
    text = '{"timestep_ends": [250, 500, 750, 1000], "ends": [4, 8, 12, 16], "visible": "prefix"}'
    older = weights_digest(pipeline.networks, text)
    assert older == "1dd4226dda329a5d"
    directions = SimpleNamespace(full=SimpleNamespace(model_hash=older), model="runs/x")
    Directions.check_model(directions, pipeline.hash_like(older))
    assert pipeline.hash_like("") == pipeline.hash_like(pipeline.model_hash) == pipeline.model_hash
    with pytest.raises(ModelError, match="another model"):
        Directions.check_model(directions, other.hash_like(older))


def test_keys_follow_facts_and_code_and_take_no_paths(monkeypatch):
    key = identity.cache_key("pictures", "abc", [1, 2])
    assert key == identity.cache_key("pictures", "abc", [1, 2])
    assert key not in (identity.cache_key("swaps", "abc", [1, 2]), identity.cache_key("pictures", "abc", [2, 1]))
    with pytest.raises(TypeError):
        identity.cache_key(Path("labels.csv"))
    monkeypatch.setattr(identity, "code_digest", lambda: "of the next release")
    assert identity.cache_key("pictures", "abc", [1, 2]) != key


def test_code_digest_is_of_the_source(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "_roots", lambda package: [tmp_path])
    digests = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (tmp_path / "module.py").write_text(text)
        digests.append(identity.code_digest.__wrapped__())
    assert digests[0] == digests[2] != digests[1]


def test_scores_of_exchanges_follow_the_content_of_the_labels(tmp_path):
    """An edited label file under the same path once gave the old scores."""
    labels = tmp_path / "labels.csv"
    settings = CompareSettings(data=("photos",), labels=str(labels))
    images = SimpleNamespace(fingerprint=lambda: "images")
    store = SwapStore(tmp_path, images, None, settings)
    subject = SimpleNamespace(model_hash="m", crop="center")
    keys = []
    for text in ("image_id,hat\na.png,1\n", "image_id,hat\na.png,0\n", "image_id,hat\na.png,1\n"):
        labels.write_text(text)
        keys.append(store.key(subject))
    assert keys[0] == keys[2] != keys[1]
    labels.unlink()
    with pytest.raises(DataError, match="Cannot read"):
        store.key(subject)


def test_weights_digest_is_the_hash_that_older_files_hold():
    encoder = torch.nn.Linear(2, 1)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[0.5, -2.0]]))
        encoder.bias.fill_(3.0)
    assert weights_digest({"encoder": encoder}, "layout") == "dda9ac14b1a0e4e3"
