"""Typed errors of the core.

Every error says what is wrong (with the offending value) and carries a remedy: what the user can do
about it. The command line turns them into one line each (`diticli.commands.failure`); a notebook sees
them as ordinary exceptions.
"""

from __future__ import annotations


class DiTiError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        message: what is wrong, with the offending value.
        remedy: what to do about it, as an imperative sentence.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ConfigError(DiTiError, ValueError):
    """An unknown key, an impossible value, or values that contradict each other."""


class ChunkError(ConfigError):
    """A chunk layout that does not add up, or a chunk range outside it."""


class DataError(DiTiError):
    """Images that are missing, unreadable, or too few."""


class MachineError(DiTiError):
    """Memory, open files or a disk that failed while images were read: no fault of the images."""


class LabelError(DiTiError):
    """A label file that cannot be parsed, or that matches no image."""


class FeatureFileError(DiTiError):
    """A feature file that is missing, damaged, or without its sidecar."""


class ModelError(DiTiError):
    """A model that cannot be found, loaded, or used for what was asked."""


class CheckpointError(DiTiError):
    """A checkpoint that is damaged or belongs to another run."""


class TrainingDivergedError(DiTiError):
    """The loss became NaN or infinite."""


class OtherProcessError(DiTiError):
    """Another process of the same run failed."""


class DeviceError(DiTiError):
    """A device or a precision that this machine does not offer."""


class UnreadableImageError(DataError):
    """An image file that cannot be decoded.

    Attributes:
        file: path of the file.
        reason: why, in a few words.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"Cannot read the image {file}: {reason}.", remedy="Repair, replace or remove it.")
        self.file = file
        self.reason = reason
