"""How images are edited: noise, solver, steps, batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from diticli.config import Precision
from diticli.errors import ConfigError
from diticli.sampling.defaults import DEFAULT_PRECISION, DEFAULT_SOLVER, DEFAULT_STEPS, Solver, steps_run

Noise = Literal["keep", "slerp", "swap", "random", "mean"]
SINGLE_IMAGE_NOISE: tuple[Noise, ...] = ("keep", "random", "mean")
"""Noise modes that need no second image."""
PIXELS_A_BATCH = {"cpu": 2**16, "cuda": 2**20}
"""Pixels of the images that are sampled together by default: 64 images of 32 px on a CPU, 64 of 128 px on a GPU."""
COMPILED_FROM = 2_000
"""Steps of full batches from which sampling on a GPU is compiled, where nothing was measured: it takes a minute or so.

On a CPU it does not pay: measured in bf16 on a network for 64 px (`python -m benchmarks forward --cases small64:2
small64:32 --compiled`), a compiled step of 32 images took 1.39 times as long as the plain one, and one of 2 images 0.87
times after 5 to 28 s of compiling: thousands of steps to win back."""


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """How images are edited.

    Attributes:
        noise: x_T of an edit. "keep": the edited image's own, inferred by inversion, so that only the features
            differ from its reconstruction (abduction, action, prediction: the counterfactual in Pearl's sense).
            "slerp": on the sphere from the own to the other image's by alpha, as in the paper's figures; smoother,
            but whatever x_T holds follows too. "swap": the other's. "random": one seeded draw for all, which
            shows what the features say by themselves. "mean": zeros, the mean of all noise.
        solver: "dpm" (second order, few steps), or "ddim" (which needs about 100).
        invert_steps: steps from image to noise that are asked for; `steps_run` says how many run.
        decode_steps: steps from noise to image, likewise.
        precision: in which the networks compute, "auto", "fp32" or "bf16"; None is the solver's default.
        seed: of the "random" noise; the rest is deterministic.
        batch_size: images sampled together; None chooses by resolution and device.
        compile: the step with torch.compile; None does so where it pays, see `should_compile`.
        official: sample as the official code does, whatever the model's own choice: the predicted x_0 clamped to
            [-1, 1] in the inversion too, and the shift in the score form. See `like_official`.

    Raises:
        ConfigError: for values outside their range.
    """

    noise: Noise = "keep"
    solver: Solver = DEFAULT_SOLVER
    invert_steps: int = DEFAULT_STEPS
    decode_steps: int = DEFAULT_STEPS
    precision: Precision | None = None
    seed: int = 0
    batch_size: int | None = None
    compile: bool | None = None
    official: bool = False

    def __post_init__(self) -> None:
        if self.noise not in get_args(Noise):
            raise ConfigError(f"There is no noise mode {self.noise!r}.", remedy=f"Choose {', '.join(get_args(Noise))}.")
        if self.precision not in (None, *get_args(Precision)):
            choices = ", ".join(get_args(Precision))
            raise ConfigError(f"There is no precision {self.precision!r}.", remedy=f"Choose {choices}.")
        if self.solver not in get_args(Solver):
            raise ConfigError(f"There is no solver {self.solver!r}.", remedy=f"Choose {', '.join(get_args(Solver))}.")
        for name in ("invert_steps", "decode_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.", remedy="Give 1 or more.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"The seed must be between 0 and 2^63 - 1, got {self.seed}.", remedy="Choose another.")

    @classmethod
    def like_official(cls, **changes: Any) -> Self:
        """The choices of the official counterfactual generation: DDIM, 1000 and 100 steps, noise on the sphere."""
        chosen: dict[str, Any] = {
            "noise": "slerp",
            "solver": "ddim",
            "invert_steps": 1000,
            "decode_steps": 100,
            "official": True,
        }
        return cls(**chosen | changes)

    @property
    def alpha_zero_is_reconstruction(self) -> bool:
        """Whether an edit of strength 0 is its image's reconstruction: features and noise are the image's own."""
        return self.noise in ("keep", "slerp")

    def sampler_kwargs(self) -> dict[str, Any]:
        """Arguments of `DiTiPipeline.sampler`."""
        precision = {} if self.precision is None else {"precision": self.precision}
        compiled = {"compile": True} if self.compile else {}
        official = {"clip": True, "shift_form": "score"} if self.official else {}
        return {"solver": self.solver, **precision, **compiled, **official}

    def should_compile(self, device: str, steps: int, least: float | None = None) -> bool:
        """Whether so many steps of full batches on a device of type `device` are to be compiled.

        `least`: steps from which that was measured to pay; None: `COMPILED_FROM`.
        """
        least = COMPILED_FROM if least is None else least
        return (device == "cuda" and steps >= least) if self.compile is None else self.compile

    def default_batch_size(self, resolution: int, device: str) -> int:
        """Images to sample together at `resolution` on a device of type `device`."""
        pixels = PIXELS_A_BATCH.get(device, PIXELS_A_BATCH["cpu"])
        return self.batch_size or min(256, max(4, pixels // resolution**2))

    def steps_run(self, timesteps: int) -> tuple[int, int]:
        """Steps of inversion and of decoding that run on a model with `timesteps`; see `diticli.sampling.steps_run`."""
        invert, decode = (steps_run(self.solver, n, timesteps) for n in (self.invert_steps, self.decode_steps))
        return invert, decode

    def describe_steps(self, timesteps: int) -> str:
        """The steps asked for, and those that run where they are others."""
        asked = (self.invert_steps, self.decode_steps)
        invert, decode = (
            f"{n}" if n == ran else f"{n} ({ran} run)" for n, ran in zip(asked, self.steps_run(timesteps), strict=True)
        )
        return f"invert {invert}, decode {decode}"

    def describe(self, timesteps: int) -> dict[str, str]:
        """Entries of a picture's metadata that let it be made again.

        Args:
            timesteps: T of the model, which decides how many steps run.
        """
        return {
            "diti:noise": self.noise + (f" (seed {self.seed})" if self.noise == "random" else ""),
            "diti:solver": self.solver,
            "diti:precision": self.precision or DEFAULT_PRECISION[self.solver],
            "diti:steps": self.describe_steps(timesteps),
            "diti:sampler": "official" if self.official else "own",
        }
