"""What `benchmarks.fuzz` draws from: options of each command, values that they may have, and values that none takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Values = Mapping[str, Sequence[str | None]]
"""Option -> values that it may have; None for a flag."""

IMAGES = 40
CHANCE = 0.15
"""Of each option to be given."""
SMALL = (
    *("data.resolution=16", "unet.channels=8,16", "unet.norm_groups=4", "unet.attention_sizes=[8]"),
    *(
        "encoder.widths=32,32",
        "encoder.attention_size=8",
        "chunks.count=4",
        "chunks.partition=uniform",
        "chunks.latent_dim=16",
    ),
    *("base.images=16", "base.batch_size=8", "base.warmup_images=8", "features.images=16"),
    *("features.batch_size=8", "features.warmup_images=8", "sample_every=0", "compile=false"),
)
LEFT_OUT = frozenset({"--compile", "--no-compile", "--help", "-h"})

_FLAG = (None,)
_PRECISION = ("auto", "fp32", "bf16")
_MODELS = ("run", "run/model")
_SEEDS = ("0", "1", "12345")

TRAIN: Values = {
    "--data": ("photos", "faces:20", "faces:20:3", "photos.tar", "{photos,more}"),
    "--resolution": ("8", "16", "24", "32"),
    "--crop": ("center", "celeba"),
    "--channels": ("1", "3"),
    "--value-range": ("0,255",),
    "--out": ("run", "other"),
    "--preset": ("faces32", "faces64", "celeba64", "bedroom128", "ffhq128"),
    "--base": ("run/base", "run/model/unet"),
    "--chunks": ("1", "2", "4", "16"),
    "--latent-dim": ("4", "16", "17"),
    "--partition": ("uniform", "staged", "quadratic", "auto"),
    "--stage-ends": ("500,1000", "50,100,300,500,1000"),
    "--stage-dims": ("8,8", "1,2,10,2,1"),
    "--modular": _FLAG,
    "--visible": ("prefix", "all"),
    "--gradient": ("cumulative", "detached", "dual"),
    "--weighting": ("pdae", "uniform", "gap"),
    "--bottleneck": ("0", "0.032", "5"),
    "--ssl": ("none", "simclr", "simsiam"),
    "--ssl-weight": ("0", "0.01"),
    "--ssl-start-step": ("0", "1"),
    "--ssl-only": _FLAG,
    "--base-images": ("1", "8", "20"),
    "--images": ("1", "8", "20"),
    "--batch-size": ("1", "3", "8", "64", "auto"),
    "--lr": ("1e-3", "1e-5"),
    "--precision": _PRECISION,
    "--device": ("cpu",),
    "--workers": ("0", "1", "2"),
    "--seed": _SEEDS,
    "--config": ("run/config.json", "small.toml"),
    "--set": ("features.ema_decay=0.999", "sample_every=1", "log_every=1", "checkpoint_every=1"),
    "--minutes": ("0.1",),
    "--dry-run": _FLAG,
    "--json": _FLAG,
}
ENCODE: Values = {
    "--out": ("new.npy", "new.npz", "new.safetensors", "new.parquet", "shards"),
    "--shard-size": ("1", "7", "100"),
    "--value-range": ("0,255",),
    "--overwrite": _FLAG,
    "--format": ("npy", "parquet"),
    "--model": _MODELS,
    "--crop": ("center", "celeba"),
    "--batch-size": ("1", "5", "64"),
    "--device": ("cpu",),
    "--precision": _PRECISION,
    "--workers": ("0", "1", "2"),
    "--no-resume": _FLAG,
    "--json": _FLAG,
    "--features": ("base", "base:50", "base:100:mid", "encoder"),
}
PROBE: Values = {
    "--overwrite": _FLAG,
    "--labels": ("labels.csv", "labels.json", "persons.txt"),
    "--groups": ("persons.txt",),
    "--split": ("parts.txt",),
    "--mask-dims": ("1", "4", "16"),
    "--mask-steps": ("10", "20"),
    "--metrics": _FLAG,
    "--atlas": _FLAG,
    "--out": ("probe", "probed/deep"),
    "--device": ("cpu",),
    "--seed": _SEEDS,
    "--json": _FLAG,
}
_SAMPLING: Values = {
    "--model": _MODELS,
    "--solver": ("dpm", "ddim"),
    "--steps": ("1", "2", "5"),
    "--invert-steps": ("1", "3"),
    "--decode-steps": ("1", "3"),
    "--precision": _PRECISION,
    "--official": _FLAG,
    "--difference": _FLAG,
    "--separate": ("singles",),
    "--no-metadata": _FLAG,
    "--overwrite": _FLAG,
    "--value-range": ("0,255",),
    "--batch-size": ("1", "2", "64"),
    "--seed": _SEEDS,
    "--device": ("cpu",),
    "--json": _FLAG,
}
_STRIP: Values = {"--out": ("edit.png", "deep/edit.png")}
_CHUNKS: Values = {
    "--chunks": ("0", "0-1", "1,3"),
    "--grid": _FLAG,
    "--noise": ("keep", "random", "mean"),
    "--animate": ("move.webp", "move.gif"),
}
_ALPHAS: Values = {"--alphas": ("0:1:2", "0.5,1", "1", "-1:2:3")}
_BETWEEN: Values = {"--noise": ("keep", "random", "mean", "slerp", "swap")}
PAIR: Values = {**_CHUNKS, **_BETWEEN, **_ALPHAS, **_STRIP, **_SAMPLING}
ATTRIBUTE: Values = {
    "--attribute": ("hat", "age", "mood=sad"),
    "--amount": ("-0.5:0.5:2", "1"),
    "--also": ("hat=0.2", "age=-0.5"),
    "--probe": ("probe",),
    "--dims": ("2",),
    "--along": ("pattern", "weight"),
    **_CHUNKS,
    **_STRIP,
    **_SAMPLING,
}
RECONSTRUCT: Values = {"--noise": ("keep", "random", "mean", "keep,random"), **_STRIP, **_SAMPLING}
TABLE: Values = {
    **_CHUNKS,
    **_BETWEEN,
    **_ALPHAS,
    **_SAMPLING,
    "--animate": ("webp", "gif"),
    "--out": ("edits", "deep/edits"),
    "--dry-run": _FLAG,
}
SHORT = "edit images"
"""The hidden command that `diti edit` without a sub-command goes to: it knows the options of all of them."""
OPTIONS: Mapping[str, Values] = {
    "train": TRAIN,
    "encode": ENCODE,
    "probe": PROBE,
    "edit pair": PAIR,
    "edit attribute": ATTRIBUTE,
    "edit reconstruct": RECONSTRUCT,
    "edit table": TABLE,
    SHORT: {**TABLE, **RECONSTRUCT, **ATTRIBUTE, **PAIR, "--reconstruct": _FLAG},
}
DRAWN = (
    ("train", "encode", "probe") * 3 + ("edit pair", "edit attribute", "edit reconstruct", "edit table") + (SHORT,) * 4
)
SHORT_MIXED = 0.15
"""Chance of the short spelling to have the options of all sub-commands; else it has those of one that it means."""
WRONG: Mapping[str, Sequence[str]] = {
    "--data": ("nowhere", "photos/0003.png", "feats.npy"),
    "--resolution": ("0", "17", "x"),
    "--base": ("run", "nowhere", "photos"),
    "--chunks": ("1000", "3-1", "7", "all"),
    "--latent-dim": ("1", "-3"),
    "--stage-ends": ("10,5", "x"),
    "--stage-dims": ("x", "0,0"),
    "--bottleneck": ("nan", "-1"),
    "--ssl-weight": ("-1", "inf"),
    "--ssl-start-step": ("50",),
    "--lr": ("0", "nan", "-1"),
    "--config": ("labels.csv", "nowhere.toml", "photos"),
    "--set": ("nothing=1", "seed=x", "unet.channels=0", "encoder.widths=16,16", "data=1", "novalue"),
    "--out": ("feats.npy/x", "photos/0000.png", "new.txt", "edit.bmp", ""),
    "--model": ("nowhere", "photos", "feats.npy"),
    "--features": ("base:5000", "middle"),
    "--labels": ("nowhere.csv", "photos/0000.png", "photos", "pairs.csv", "folder"),
    "--groups": ("nowhere.txt", "labels.csv"),
    "--split": ("persons.txt", "labels.csv"),
    "--mask-dims": ("17", "0"),
    "--alphas": ("x", "0:1:0", "1:2"),
    "--noise": ("fog", ""),
    "--attribute": ("height", "mood"),
    "--amount": ("x", "nan"),
    "--probe": ("nowhere", "photos"),
    "--dims": ("99",),
    "--along": ("across",),
    "--solver": ("euler",),
    "--steps": ("0", "1001"),
    "--separate": ("feats.npy",),
    "--animate": ("move.mp4", "mp4"),
    "--device": ("cuda", "tpu", "cuda:9"),
    "--workers": ("-1",),
    "--seed": ("-1", "99999999999999999999999"),
}
"""Values that no command takes, or not in every place."""
WRONG_CHANCE = 0.04
CHANCES: Mapping[str, float] = {
    **{"--labels": 0.9, "--model": 0.95, "--dry-run": 0.1, "--official": 0.04, "--precision": 0.3},
    **{
        "--attribute": 0.95,
        "--grid": 0.05,
        "--noise": 0.1,
        "--shard-size": 0.1,
        "--format": 0.1,
        "--mask-steps": 0.1,
        "--stage-ends": 0.05,
    },
    **{"--stage-dims": 0.05, "--ssl-only": 0.05, "--preset": 0.05},
}
"""Of an option to be given, where it is not `CHANCE`: most of these go with others only."""
_SOURCES = (("photos",), ("faces:9:1",), ("photos.tar",), ("@list.txt",), ("photos/0001.png", "more"))
_PAIRS = (("faces:3", "faces:8"), ("photos/0001.png", "faces:2:5"), ("photos/0001.png", "photos/0007.png"))
_IMAGES = (("photos/0002.png",), ("faces:3",), *_PAIRS)
ARGUMENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "train": ((),),
    "encode": (*_SOURCES, *_SOURCES, ("nowhere",), ("feats.npy",)),
    "probe": (*(("feats.npy",), ("feats",)) * 6, ("nowhere.npy",), ("photos",)),
    "edit pair": (*_PAIRS * 4, ("photos/0002.png",), ("photos", "faces:1")),
    "edit attribute": (*_IMAGES * 4, ("nowhere.png",)),
    "edit reconstruct": (*_IMAGES * 4, ("photos/0002.png", "feats.npy")),
    "edit table": (*(("pairs.csv",),) * 5, ("labels.csv",)),
}
"""What stands before the options."""
