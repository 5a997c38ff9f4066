"""How a pair of images is edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from diticli.errors import ConfigError

Noise = Literal["keep", "slerp", "swap", "random"]


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """How a pair is edited.

    Attributes:
        noise: x_T of an edit. "keep": the edited image's own, so that only the chosen chunks differ from its
            reconstruction (abduction, action, prediction: the counterfactual in Pearl's sense). "slerp": on
            the sphere from the own to the other's by alpha, as in the paper's figures; smoother, but whatever
            x_T holds follows too. "swap": the other's. "random": one seeded draw for all, which shows what
            the features say by themselves.
        invert_steps: DDIM steps from image to noise.
        decode_steps: DDIM steps from noise to image.
        seed: of the "random" noise; the rest is deterministic.
        batch_size: images decoded together.
        official: sample as the official code does, whatever the model's own choice: the predicted x_0 clamped to
            [-1, 1] in the inversion too, and the shift in the score form. See `like_official`.

    Raises:
        ConfigError: for values outside their range.
    """

    noise: Noise = "keep"
    invert_steps: int = 100
    decode_steps: int = 100
    seed: int = 0
    batch_size: int = 16
    official: bool = False

    def __post_init__(self) -> None:
        if self.noise not in get_args(Noise):
            raise ConfigError(f"There is no noise mode {self.noise!r}.", remedy=f"Choose {', '.join(get_args(Noise))}.")
        for name in ("invert_steps", "decode_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"The seed must be between 0 and 2^63 - 1, got {self.seed}.")

    @classmethod
    def like_official(cls, **changes: Any) -> Self:
        """The choices of the official counterfactual generation: 1000 and 100 steps, noise on the sphere."""
        chosen: dict[str, Any] = {"noise": "slerp", "invert_steps": 1000, "decode_steps": 100, "official": True}
        return cls(**chosen | changes)

    def sampler(self) -> dict[str, Any]:
        """Arguments of `DiTiPipeline.invert` and `decode` beside the steps."""
        return {"clip": True, "shift_form": "score"} if self.official else {}
