"""What /proc says of the process under measurement: processor time, memory, descriptors."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """Of one process at one moment: seconds, KiB, KiB, descriptors."""

    cpu: float
    rss: int
    anonymous: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()

        def kib(name: str) -> int:
            return int(re.findall(rf"{name}:\s+(\d+)", status)[0])

        return cls(
            cpu=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            rss=kib("VmRSS"),
            anonymous=kib("RssAnon"),
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        )
