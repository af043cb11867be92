"""What ``sds admission`` costs: the wrapper against the bare runtime, turn by turn in one run.

``python -m bench.admission [N]``, as root, with containerd and runc: N pods under each of two
handlers of one containerd, and one exec in each container.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from typing import TYPE_CHECKING

from sds.workload.cri.canonical import executed, expected_exec
from sds.workload.cri.runtime import Runtime
from tests.support.admission import BARE, RUNTIMES, AdmissionNode
from tests.support.containerd import containerd
from tests.support.cri_node import CriNode
from tests.support.node import short_folder

if TYPE_CHECKING:
    from tests.support.containerd import Containerd

PROBE = ("/pause", "--exit")
STEPS = ("sandbox", "container", "exec")


async def once(runtime: Containerd, handler: str) -> tuple[float, ...]:
    """Seconds of each step of one pod."""
    moments = [time.perf_counter()]
    pod = await runtime.pod(handler=handler)
    moments.append(time.perf_counter())
    main = await runtime.container(pod)
    moments.append(time.perf_counter())
    await runtime.exec(main, *PROBE)
    moments.append(time.perf_counter())
    await runtime.remove_pod(pod)
    return tuple(after - before for before, after in itertools.pairwise(moments))


async def run(count: int) -> None:
    """Measure, and print a table."""
    with short_folder() as folder:
        runtimes = RUNTIMES.format(wrapper=folder / "attested-runc") + BARE
        async with containerd(folder, runtimes=runtimes) as runtime:
            pod = await runtime.pod(handler="bare")
            main = await runtime.container(pod)
            listed = await CriNode(runtime, folder).contents(pod)
            async with Runtime(runtime.socket) as client:
                process = (await client.container(main)).spec["process"]
            probe = expected_exec("main", executed("main", process), PROBE).digest
            await runtime.remove_pod(pod)
            listed = listed.model_copy(update={"execs": (probe,)})
            async with AdmissionNode(folder, runtime).service(listed):
                bare, wrapped = [], []
                for _ in range(count):
                    bare.append(await once(runtime, "bare"))
                    wrapped.append(await once(runtime, "runc"))
    print("| step | bare ms | with admission ms | ratio |\n|---|---:|---:|---:|")
    for number, step in enumerate(STEPS):
        one, two = (
            statistics.median(each[number] for each in all_of) * 1000 for all_of in (bare, wrapped)
        )
        print(f"| {step} | {one:.0f} | {two:.0f} | {two / one:.2f} |")


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
