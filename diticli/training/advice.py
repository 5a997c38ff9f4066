"""What a budget leads to expect of the features, from measurements (docs/results.md). Pure Python."""

from __future__ import annotations

from diticli.config import RunConfig
from diticli.config_groups import StageConfig
from diticli.data.faces_word import is_faces

USABLE_FACES = 80_000
"""Images of stage 2 from which features of the built-in faces were clearly better than an untrained encoder's."""
TRIED_PHOTOS = 80_000
"""Images of stage 2 up to which features of photographs at 32 px were not."""

FEWEST_PICTURES = 6_799
"""Different pictures of the training on the fewest of them (CelebA's, docs/results.md)."""


def trained_stages(config: RunConfig) -> tuple[str, ...]:
    """Names of the stages that a run trains."""
    return ("features",) if config.base_model or config.ssl.only else ("base", "features")


def images_notes(config: RunConfig) -> tuple[str, ...]:
    """How many images each stage takes, where that is not what was asked for, and how to change it."""
    options = {"base": "change with --base-images", "features": "change with --images"}
    timed = f"planned for --minutes {config.minutes:g}" if config.minutes else ""
    return tuple(_images_note(name, config.stage(name), timed or options[name]) for name in trained_stages(config))


def _images_note(name: str, stage: StageConfig, how: str) -> str:
    images, batch = stage.steps * stage.batch_size, stage.batch_size
    rounded = "" if images == stage.images else f" instead of {stage.images:,}: whole batches of {batch}"
    return f"Images, stage {name}: {images:,}{rounded} ({how})"


def few_pictures(config: RunConfig, pictures: int) -> str:
    """A sentence on a training that sees few different pictures more often than any was measured; "" otherwise."""
    stages = {name: config.stage(name) for name in trained_stages(config)}
    seen = {name: stage.steps * stage.batch_size / max(pictures, 1) for name, stage in stages.items()}
    if pictures >= FEWEST_PICTURES or max(seen.values()) <= TRIED_PHOTOS / FEWEST_PICTURES:
        return ""
    each = " and ".join(f"{times:,.0f} times in stage {name}" for name, times in seen.items() if times >= 2)
    return (
        f"{pictures:,} different pictures are few: each is seen {each}, so that the networks may learn these pictures "
        f"by heart and be of little use for others (overfitting). No training in docs/results.md had fewer than "
        f"{FEWEST_PICTURES:,}; how many are enough was not measured."
    )


def budget_warnings(config: RunConfig) -> tuple[str, ...]:
    """Sentences on a stage 2 too short for usable features; none where it is long enough or nothing was measured."""
    images = config.features.steps * config.features.batch_size
    if config.ssl.only:
        return ()
    if is_faces(config.data.source):
        if images >= USABLE_FACES:
            return ()
        return (
            f"{images:,} images in stage features are too few for usable features: on the built-in faces the mean R2 "
            "was 0.74 after 25,600 images, where an untrained encoder has 0.71, and 0.89 after 200,000.",
        )
    if images > TRIED_PHOTOS:
        return ()
    return (
        f"{images:,} images in stage features are too few for usable features of photographs: after {TRIED_PHOTOS:,} "
        "at 32 px they were no better than an untrained encoder's on CelebA and hardly better on LFW. The paper trains "
        "on 38 million at 64 px; how many are enough was not measured.",
    )


def short_training(images: int | None, *, faces: bool) -> str:
    """A sentence on a stage 2 that saw too few images for usable features; "" where it did not, or nobody knows."""
    if images is None or (images >= USABLE_FACES if faces else images > TRIED_PHOTOS):
        return ""
    enough = (
        f"features of the built-in faces were usable from about {USABLE_FACES:,} on"
        if faces
        else f"for features of photographs {TRIED_PHOTOS:,} were too few"
    )
    return f"It was trained on {images:,} images in stage 2: {enough}."


def learning_rate_note(name: str, stage: StageConfig) -> str:
    """What the optimizer gets in a stage, and how it comes to it."""
    per_32 = "" if stage.batch_size == 32 else f" ({stage.learning_rate:g} per 32 images, batch {stage.batch_size})"
    wanted, warmup = stage.warmup_images, round(stage.warmup_steps * stage.batch_size)
    rise = f", after a warm-up of {warmup:,} images" if warmup else ""
    if warmup < wanted:
        rise += f" (a tenth of the stage instead of {wanted:,} images)"
    then = ", then down to 1 % along a cosine" if stage.decay == "cosine" else ""
    return f"Learning rate, stage {name}: {stage.peak_learning_rate:g}{per_32}{rise}{then}"
