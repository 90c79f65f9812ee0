"""A stand-in for the runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moshi_pipe.config import RunConfig


@dataclass
class FakeBuild:
    """Stands in for the runner: remembers what it was asked to run.

    Attributes:
        configs: Every configuration that reached it.
        error: Raised instead of running, when set.
        exit_code: What its report says.
    """

    configs: list[RunConfig] = field(default_factory=list)
    error: BaseException | None = None
    exit_code: int = 0

    def run_in_terminal(self, config: RunConfig, plugins: Any, **_: Any) -> int:
        self.configs.append(config)
        if self.error is not None:
            raise self.error
        return self.exit_code
