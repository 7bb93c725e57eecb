"""What every config of a consumer that trains states."""

from dataclasses import dataclass

from nisynth.errors import ConfigError
from nisynth.storage import open_store


@dataclass(frozen=True, kw_only=True)
class ConsumerConfig:
    """What is read, and where the result goes.

    data: the run's URL. output: where the result goes, a folder or s3:// URL. checkpoint_minutes: between two
    saves. allow_partial: train on what an incomplete run has committed.
    """

    data: str = ""
    output: str = ""
    checkpoint_minutes: float = 5.0
    allow_partial: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("data: missing; give the URL of a run, in the config or with --data")
        if not self.output:
            raise ConfigError("output: missing; give a folder or s3:// URL, in the config or with --output")
        if open_store(self.output).url == open_store(self.data).url:
            raise ConfigError(f"output: {self.output} holds the run itself; give another folder or URL")
        if not self.checkpoint_minutes >= 0:
            raise ConfigError(f"checkpoint_minutes: {self.checkpoint_minutes} is negative")
