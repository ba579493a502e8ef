"""The exceptions of the trainer, under the corpus builder's `UserFacingError`.

UserFacingError
+-- AsmtrainError
    +-- ModelError           a model folder or tokenizer that cannot be used
    +-- CheckpointError      a checkpoint that is damaged or belongs to another run
    +-- ExportError          an export that failed its own verification
    +-- BinaryError          an assembly or object file that cannot be read
    +-- VectorIndexError     a vector index that is damaged or was made by another model
    +-- ServeError           an address that cannot be listened on
    +-- LaunchError          ranks, devices or launcher that do not fit the config
    +-- UnstableError        a loss or gradient norm that a run must not go on with
    +-- LeakError            an attention that lets packed documents see each other
+-- ConfigError              shared with the corpus builder
"""

from corpus_builder.errors import ConfigError, UserFacingError

__all__ = [
    "AsmtrainError",
    "BinaryError",
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "LaunchError",
    "LeakError",
    "ModelError",
    "ServeError",
    "UnstableError",
    "UserFacingError",
    "VectorIndexError",
]


class AsmtrainError(UserFacingError):
    """Anything the trainer reports as one line and exit code 2."""


class ModelError(AsmtrainError):
    """A model folder or tokenizer that cannot be used."""


class CheckpointError(AsmtrainError):
    """A checkpoint that is damaged or belongs to another run."""


class ExportError(AsmtrainError):
    """An export that failed its own verification."""


class BinaryError(AsmtrainError):
    """An assembly or object file that cannot be read."""


class VectorIndexError(AsmtrainError):
    """A vector index that is damaged or was made by another model."""


class ServeError(AsmtrainError):
    """An address that cannot be listened on."""


class LaunchError(AsmtrainError):
    """Ranks, devices or a launcher that do not fit the config."""


class UnstableError(AsmtrainError):
    """A loss or gradient norm that a run must not go on with."""


class LeakError(AsmtrainError):
    """An attention that lets packed documents see each other."""
