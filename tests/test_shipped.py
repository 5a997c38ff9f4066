"""The model that ships with the package: it loads fast, edits, and holds to its gates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diticli.data.faces import write_labels_csv
from diticli.data.images import FaceImages, load_images
from diticli.data.labels import read_labels
from diticli.models.hub import SHIPPED_FOLDER
from diticli.models.load import load_model
from diticli.models.model import DiTiModel
from diticli.models.pixels import normalise
from diticli.pictures.grids import psnr
from diticli.probing.label_join import join_labels
from diticli.probing.probe import probe_features

FACES = FaceImages(1500, 1, 32)


def test_it_is_small_and_says_what_it_is() -> None:
    files = [path for path in SHIPPED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    card = (SHIPPED_FOLDER / "README.md").read_text()
    assert all(word in card for word in ("faces:200000", "make model", "seed", "mean R2", "transfer rate", "atlas.png"))
    record = json.loads((SHIPPED_FOLDER / "training.json").read_text())
    assert record["config"]["data"]["source"] == "faces:200000"
    psnr = record["reconstruction_psnr_db"]
    assert f"{psnr['lower_quartile']} to {psnr['upper_quartile']} dB, the least {psnr['least']} dB" in card
    for name, rate in record["transfer_rates"].items():
        assert f"| {name} | {rate:.2f} |" in card, "the transfer rates are those of the card"


def test_it_edits_from_an_empty_folder(tmp_path: Path) -> None:
    command = "from diticli.__main__ import main; import sys; sys.exit(main())"
    arguments = ["edit", "faces:3", "faces:8", "--chunks", "10-20", "-o", "out.png", "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if key != "DITI_MODEL"}
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Model: shipped with diticli" in done.stderr
    assert "trained on built-in faces, 32 px" in done.stderr
    assert "Warning" not in done.stderr, "these chunks change what one can see"
    with Image.open(tmp_path / "out.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_it_reads_the_factors_of_held_out_faces_and_gives_pictures_back(tmp_path: Path) -> None:
    model = load_model("shipped", "cpu")
    assert type(model) is DiTiModel
    images = torch.from_numpy(load_images(FACES).images).permute(0, 3, 1, 2)
    with torch.no_grad():
        z = torch.cat([model.encode(normalise(part)) for part in images.split(250)])
        x0 = normalise(images[:8])
        back = model.decode(model.invert(x0, z[:8], steps=20), z[:8], steps=20)
        few = model.decode(model.invert(x0[:4], z[:4], steps=5), z[:4], steps=5)
    assert psnr(back, x0) > 50
    assert psnr(few, x0[:4]) > 30
    write_labels_csv(tmp_path / "labels.csv", 1, range(len(FACES)))
    names = [FACES.file_name(i) for i in range(len(FACES))]
    joined = join_labels(names, read_labels(tmp_path / "labels.csv"), None)
    report = probe_features(z.numpy(), joined.columns, rows=joined.rows, seed=0)
    # The card has the exact figures on 4,000 faces; these are bounds for 1,500.
    assert report.means["number"]["r2"] > 0.85
    assert report.means["binary"]["average_precision"] > 0.99
