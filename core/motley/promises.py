"""What a run file promises of its clients' privacy, tier by tier, and what would break it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from motley.algorithms import registry
from motley.privacy.guarantee import Guarantee
from motley.privacy.settings import PrivacySettings, guarantee_of, noise_fault

if TYPE_CHECKING:
    from motley.runfile import RunFile, Tier


def promises(runfile: RunFile) -> dict[str, Guarantee]:
    """Return the guarantee of each tier that has one, by name; empty for a run without privacy.

    The settings are valid. Noise is planned for the rounds of the run file, each counted once.
    """
    found = {tier.name: guarantee_of(_settings(runfile, tier), runfile.run.rounds)
             for tier in runfile.tiers}  # fmt: skip
    return {name: guarantee for name, guarantee in found.items() if guarantee is not None}


def given_noise(runfile: RunFile) -> dict[str, float]:
    """Return the noise multipliers that the run file itself gives, by tier."""
    found = {}
    for tier in runfile.tiers:
        settings = _settings(runfile, tier)
        if isinstance(settings, PrivacySettings) and settings.noise_multiplier is not None:
            found[tier.name] = settings.noise_multiplier
    return found


def promise_faults(runfile: RunFile) -> list[str]:
    """Return what is wrong with a run file's promises, as lines `field: text`."""
    found, given = promises(runfile), given_noise(runfile)
    if not found:
        return []
    faults = []
    modes = {tier.name: _mode(runfile, tier) for tier in runfile.tiers}
    if len({*modes.values(), _mode(runfile, None)}) > 1:
        told = ", ".join(f"{name}: {mode}" for name, mode in modes.items())
        faults.append(f"settings.privacy: one for the whole run, in [settings] (tiers: {told})")
    for name, guarantee in found.items():
        fault = noise_fault(guarantee, given[name]) if name in given else ""
        if fault:
            faults.append(f"tiers.{name}.settings: {fault}")
    evaluate = runfile.evaluate
    if evaluate.every and not evaluate.held_out:
        faults.append(
            "evaluate.every: clients' scores are data that no privacy budget covers, and a private "
            "run does not ask for them; give evaluate.held_out, the server's own data, or leave it "
            "out"
        )
    return faults


def _mode(runfile: RunFile, tier: Tier | None) -> str:
    settings = _settings(runfile, tier)
    return settings.privacy if isinstance(settings, PrivacySettings) else "none"


def _settings(runfile: RunFile, tier: Tier | None) -> BaseModel:
    values = {**runfile.settings, **(tier.settings if tier else {})}
    return registry.find(runfile.run.algorithm).configure(values).settings
