"""Which clients can take part in a run, and in which tier."""

from __future__ import annotations

from typing import Any

from structlog.stdlib import get_logger

from fedserver.rounds.context import RunContext
from fedserver.rounds.presence import Arrival, Profile
from motley.plan import FULL_PRECISION
from motley.runfile import Tier, When
from motley.wire import VERSION as WIRE_VERSION

log = get_logger()

GIB = 1024**3


def refusal(context: RunContext, arrival: Arrival) -> str:
    """Return why a client cannot take part in a run, or "" when it can.

    Only what the client can decode and run is ever planned for it; the reason is shown to the
    operator and sent to the client.
    """
    caps, runfile = arrival.capabilities, context.runfile
    if caps.wire < WIRE_VERSION:
        return (
            f"the device reads payloads up to version {caps.wire}, the run sends version "
            f"{WIRE_VERSION}; update motley-fl on it"
        )
    method, workload = runfile.run.algorithm, runfile.workload.name
    for key, value in runfile.clients.labels.items():
        if arrival.profile.labels.get(key) != value:
            return f"the run wants label {key}={value}"
    if workload not in caps.workloads:
        return (
            f"workload {workload!r} is not mapped on the device; start the client with "
            f"--workload {workload}=module:object"
        )
    if context.model and caps.workloads[workload] != context.model.workload_version:
        return (
            f"workload {workload!r} is version {caps.workloads[workload]} on the device and "
            f"{context.model.workload_version} on the server; install the same version on both"
        )
    ours = context.algorithm.version
    if caps.algorithms.get(method) != ours:
        theirs = caps.algorithms.get(method, "missing")
        return f"algorithm {method!r} is version {theirs} on the device and {ours} on the server"
    missing = [e for e in needed_encodings(context) if e not in caps.encodings]
    if missing:
        return f"the device cannot decode {', '.join(missing)}; update motley-fl on it"
    if tier_for(context, arrival.profile) is None:
        return "no tier of the run file fits the device; name one with --tier, or add one"
    return ""


def needed_encodings(context: RunContext) -> tuple[str, ...]:
    """Return the encodings that a run puts on the wire."""
    wire = context.runfile.wire
    extra = context.algorithm.encodings
    if context.algorithm.tiers_choose_bits:
        return ("dense", "uniform", *extra)
    widths = {wire.up_bits, wire.down_bits}
    for tier in context.runfile.tiers:
        widths |= {b for b in (tier.up_bits, tier.down_bits) if b is not None}
    return ("dense", *extra) if widths == {FULL_PRECISION} else ("dense", "uniform", *extra)


def tier_for(context: RunContext, profile: Profile) -> Tier | None:
    """Return the owner's tier when the run has it, else the first whose conditions hold."""
    tiers = context.runfile.tiers
    if profile.tier:
        named = [tier for tier in tiers if tier.name == profile.tier]
        if named:
            return named[0]
    for tier in tiers:
        if tier.when is None or _holds(tier.when, profile):
            return tier
    return None


def _holds(when: When, profile: Profile) -> bool:
    checks = (
        when.memory_gib_below is None or profile.memory_bytes < when.memory_gib_below * GIB,
        when.cores_below is None or profile.cores < when.cores_below,
        when.probe_gflops_below is None or profile.probe_gflops < when.probe_gflops_below,
        when.accelerator is None or bool(profile.accelerator) == when.accelerator,
        all(profile.labels.get(key) == value for key, value in when.labels.items()),
    )
    return all(checks)


def frozen(context: RunContext, arrival: Arrival) -> dict[str, Any]:
    """Return the row of `members` of a client that a run can take, as it is frozen."""
    tier, named = tier_for(context, arrival.profile), arrival.profile.tier
    assert tier is not None
    if named and named != tier.name:
        # Another run's tier, or a misspelt one: the operator should see what it became.
        log.warning(
            "tier_unknown", run=context.id, client=arrival.name, named=named, taken=tier.name
        )
    return {
        "run": context.id,
        "client": arrival.name,
        "tier": tier.name,
        "variant": context.variant_for(tier),
        "threads": arrival.profile.threads,
        "profile": {**vars(arrival.profile), "labels": dict(arrival.profile.labels)},
    }
