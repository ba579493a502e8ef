"""The exceptions of the corpus builder.

    UserFacingError              what a user can mend: a message with the value, and the remedy
    +-- ConfigError              a configuration that cannot be used
    +-- SourceError              a project that cannot be fetched
    |   +-- TamperedSource       it was fetched, but is not what the config pinned
    +-- ToolchainError           a compiler that is missing or does not work
    +-- ShardError               a shard or index that is damaged
    +-- ClusterLost              the part of a cluster that a build cannot do without is gone
    +-- EmptyCorpus              nothing came out of a build, or a split holds nothing
    +-- OutputError              a result that could not be written: full disk, permissions

A compiler that refuses a unit is not an exception but data: `record.Failure`.
"""


class UserFacingError(Exception):
    """Anything a command reports as one line and exit code 2, without a traceback."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (Ray); the default would lose the keyword-only remedy.
        return (_rebuild, (type(self), self.message, self.remedy))


def _rebuild(kind: type[UserFacingError], message: str, remedy: str) -> UserFacingError:
    return kind(message, remedy=remedy)


class ConfigError(UserFacingError):
    """A configuration that cannot be used."""


class SourceError(UserFacingError):
    """A project that cannot be fetched or unpacked."""


class TamperedSource(SourceError):
    """A fetched project whose sha256 is not the pinned one."""


class ToolchainError(UserFacingError):
    """A compiler that is missing or does not work."""


class ShardError(UserFacingError):
    """A shard or an index that is damaged."""


class ClusterLost(UserFacingError):
    """A cluster that is gone, or the driver's own node of it."""


class EmptyCorpus(UserFacingError):
    """A corpus, or a split of it, that holds no function."""


class OutputError(UserFacingError):
    """A result that could not be written."""
