"""How fast a large policy loads and decides, and what it holds in memory.

    python bench/policy.py [--identities N] [--rules N]

Each figure is taken in a process of its own. Loading is what an agent does with a signed file:
envelope, signatures, strict YAML, model, tables. The ratio compares a decision over the large
policy with the same decision over one rule: it should not depend on the number of rules.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sds.attestation.evidence import Claims, EvidenceKind
from sds.identity import SpiffeId, TrustDomain
from sds.policy.envelope import MAX_SIGNED_BYTES, SignedPolicy
from sds.policy.nodes import RequestedCertificate
from sds.policy.succession import PolicySuccession, offer, split
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from tests.support.policies import Signatory, sign, trusting

S = "spiffe://example.org"
MEASUREMENT = "ab" * 48
TARGETS = {"load_seconds": 2.0, "decision_us": 50.0, "memory_mb": 60.0}


def document(identities: int, rules: int) -> bytes:
    now = datetime.now(UTC)
    lines = [
        "version: 1",
        "trust_domain: example.org",
        "epoch: 3",
        f"not_before: {(now - timedelta(hours=1)).isoformat()}",
        f"not_after: {(now + timedelta(hours=1)).isoformat()}",
        "nodes:",
        "- name: workers",
        f"  measurements: ['{MEASUREMENT}']",
        "  grants:",
    ]
    lines += [
        f"  - {{spiffe_ids: '{name(number)}', dns_names: ['w{number}.n{number % 100}.svc']}}"
        for number in range(identities)
    ]
    lines.append("workloads:")
    lines += [
        f"- name: w{number}\n"
        f"  match: {{'k8s:ns': n{number % 100}, 'k8s:sa': w{number}}}\n"
        f"  spiffe_id: '{name(number)}'"
        for number in range(identities)
    ]
    lines.append("allow:")
    lines += [
        f"- {{from: '{name(number)}', to: '{name((number + 1) % identities)}'}}"
        for number in range(rules)
    ]
    return ("\n".join(lines) + "\n").encode()


def name(number: int) -> str:
    return f"{S}/ns/n{number % 100}/sa/w{number}"


def anonymous_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise RuntimeError("the kernel tells no RssAnon")


def measure(signed: bytes, signatory: Any, identities: int, queue: Any) -> None:
    """In a fresh process: load, then decide."""
    start = PolicySuccession(trust_domain=TrustDomain("example.org"), trusted=signatory)
    gc.collect()
    before = anonymous_kb()
    began, spent = time.perf_counter(), time.process_time()
    state, outcome = offer(start, split(signed), now=datetime.now(UTC))
    load, cpu = time.perf_counter() - began, time.process_time() - spent
    assert outcome.taken is not None, outcome.refusal
    del outcome
    gc.collect()
    held = anonymous_kb() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert state.policy is not None
    decisions = state.policy.decisions
    one, two, three = (SpiffeId.parse(name(number % identities)) for number in (41, 42, 77))
    claims = Claims(kind=EvidenceKind.SEV_SNP, measurement=MEASUREMENT, simulated=False)
    facts = Facts(
        selectors=frozenset({Selector("k8s:ns", "n42"), Selector("k8s:sa", "w42")})
        if identities > 1
        else frozenset({Selector("k8s:ns", "n0"), Selector("k8s:sa", "w0")})
    )
    dns = (f"w{42 % identities}.n{42 % identities % 100}.svc",)
    asked = RequestedCertificate(spiffe_id=two, dns_names=dns, lifetime=timedelta(hours=1))
    assert decisions.may_talk(one, two)
    assert identities == 1 or not decisions.may_talk(one, three)
    assert decisions.recognise(facts).identities
    questions = {
        "may A talk to B: yes": lambda: decisions.may_talk(one, two),
        "may A talk to C: no": lambda: decisions.may_talk(one, three),
        "may this node have this name": lambda: decisions.permit(claims, asked),
        "who is this caller": lambda: decisions.recognise(facts),
        "inbound context": lambda: decisions.inbound(two),
        "outbound context": lambda: decisions.outbound(one, str(two)),
    }
    queue.put(
        {
            "load_seconds": load,
            "load_cpu_seconds": cpu,
            "memory_mb": held / 1024,
            "peak_rss_mb": peak / 1024,
            "decisions_us": {what: timed(ask) for what, ask in questions.items()},
        }
    )


def timed(ask: Any) -> float:
    """Microseconds of CPU of one call: the median of 15 rounds of 2,000."""
    rounds = []
    for _ in range(15):
        began = time.process_time()
        for _ in range(2000):
            ask()
        rounds.append((time.process_time() - began) / 2000 * 1e6)
    return statistics.median(rounds)


def run(identities: int, rules: int) -> dict[str, Any]:
    signatory = Signatory("bench")
    signed: SignedPolicy = sign(document(identities, rules), signatory)
    assert len(signed) <= MAX_SIGNED_BYTES
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    process = context.Process(target=measure, args=(signed, trusting(signatory), identities, queue))
    process.start()
    result: dict[str, Any] = queue.get(timeout=600)
    process.join()
    return {**result, "signed_bytes": len(signed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--identities", type=int, default=10_000)
    parser.add_argument("--rules", type=int, default=10_000)
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    small = run(1, 1)
    large = run(options.identities, options.rules)
    if options.output == "json":
        print(json.dumps({"small": small, "large": large}))
        return
    print(
        f"{options.identities} identities, {options.rules} allow rules "
        f"({large['signed_bytes'] / 1e6:.1f} MB signed), {os.cpu_count()} cores"
    )
    print(
        f"load      {large['load_seconds']:.2f} s, {large['load_cpu_seconds']:.2f} s of CPU  "
        f"(to reach: {TARGETS['load_seconds']} s)"
    )
    print(
        f"memory    {large['memory_mb']:.0f} MB held  (to reach: {TARGETS['memory_mb']:.0f} MB; "
        f"peak RSS of the process {large['peak_rss_mb']:.0f} MB, interpreter and libraries in it)"
    )
    print(f"{'decision (to reach: 50 µs)':32} {'large':>9} {'one rule':>9} {'ratio':>6}")
    for what, value in large["decisions_us"].items():
        one = small["decisions_us"][what]
        print(f"{what:32} {value:6.1f} µs {one:6.1f} µs {value / one:6.2f}")


if __name__ == "__main__":
    main()
