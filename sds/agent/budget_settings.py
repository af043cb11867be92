"""Settings of the budgets of the owners of connections: the section ``budgets:``.

Owns how :mod:`sds.transport.budget_sizes` is written in the agent's configuration. Invariant:
without the section, the defaults are in force, which fit the agent's 256 MiB.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from sds.settings.field_types import Count, Settings, Size
from sds.transport.budget_sizes import RECOGNISED, STRANGERS, Share, Total

_TOTAL: Final = Total()
_Rate = Annotated[float, Field(gt=0)]
_Memory = Annotated[Size, Field(ge=256 << 10)]
"""With less, an owner has no room for one connection with its messages."""
_Part = Annotated[float, Field(gt=0, le=1)]


class OwnerBudgetSection(Settings):
    """What one owner of connections may use: a pod, or a user outside pods."""

    connections: Count = Field(
        default=RECOGNISED.connections, description="Connections at the same time."
    )
    streams: Count = Field(
        default=RECOGNISED.streams, description="Streams and calls at the same time."
    )
    memory: _Memory = Field(
        default=RECOGNISED.held_bytes,
        description="Memory of its connections, streams, messages and output that waits.",
    )
    processor: _Part = Field(
        default=RECOGNISED.processor,
        description="Part of the event loop's time in the long run; 1 is all of it.",
    )
    refused_per_second: _Rate = Field(
        default=RECOGNISED.refusals_per_second,
        description="Calls per second that may be refused before its connection is closed.",
    )
    log_lines_per_second: _Rate = Field(
        default=RECOGNISED.lines_per_second, description="Log lines per second that it may cause."
    )

    def share(self, default: Share = RECOGNISED) -> Share:
        """Return the share as the transport takes it; bursts are those of ``default``."""
        return dataclasses.replace(
            default,
            connections=self.connections,
            streams=self.streams,
            held_bytes=self.memory,
            processor=self.processor,
            refusals_per_second=self.refused_per_second,
            lines_per_second=self.log_lines_per_second,
        )


class StrangersBudgetSection(OwnerBudgetSection):
    """What all owners that no rule recognises may use together."""

    connections: Count = Field(
        default=STRANGERS.connections,
        description="Connections at the same time; one owner may have a quarter of them.",
    )
    streams: Count = Field(
        default=STRANGERS.streams,
        description="Streams and calls at the same time. One owner may have a quarter of them, and "
        "a 32nd (eight at least) once half are open.",
    )
    memory: _Memory = Field(
        default=STRANGERS.held_bytes,
        description="Memory of their connections, streams, messages and output that waits; shared "
        "out as streams are (192 KiB at least).",
    )
    processor: _Part = Field(
        default=STRANGERS.processor,
        description="Part of the event loop's time in the long run; 1 is all of it.",
    )
    refused_per_second: _Rate = Field(
        default=STRANGERS.refusals_per_second,
        description="Calls per second that may be refused before a connection is closed.",
    )
    log_lines_per_second: _Rate = Field(
        default=STRANGERS.lines_per_second, description="Log lines per second that they may cause."
    )


class BudgetsSection(Settings):
    """What the owners of connections may use, on all sockets but the admin socket."""

    owner: OwnerBudgetSection = Field(
        default=OwnerBudgetSection(), description="One owner that a rule recognises."
    )
    strangers: StrangersBudgetSection = Field(
        default=StrangersBudgetSection(),
        description="All owners that no rule recognises, together.",
    )
    memory: _Memory = Field(
        default=_TOTAL.held_bytes,
        description="Memory of all owners together. The last seventh is for owners that hold "
        "little. What the process needs for itself comes on top: 60 to 90 MiB. If no `memory` is "
        "written under `budgets`, a control group that allows less than 256 MiB makes all of them "
        "smaller.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, section in (("owner", self.owner), ("strangers", self.strangers)):
            if section.memory > self.memory:
                raise ValueError(
                    f"{name}.memory: it is larger than `memory`, which bounds everybody together"
                )
        return self

    def total(self, descriptors: int) -> Total:
        """Return what all owners together may use.

        Args:
            descriptors: how many descriptors the process may have (RLIMIT_NOFILE).
        """
        of_descriptors = Total.of_descriptors(descriptors)
        return dataclasses.replace(
            of_descriptors, held_bytes=self.memory, spared_bytes=self.memory // 7
        )

    @property
    def fits_itself(self) -> bool:
        """Say whether no amount of memory is configured, so that the control group may decide."""
        return "memory" not in self.model_fields_set | {
            field for section in (self.owner, self.strangers) for field in section.model_fields_set
        }
