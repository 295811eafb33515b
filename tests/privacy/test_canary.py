"""An attack that knows everything but one record gains no more than ε allows.

The attacker is the server, with all other records, the model, and the canary itself; it must tell
from the update whether the canary was in. A test with true positives p and false positives f
shows ε >= ln((p - δ) / f), and the same for the complements. p and f are bounded by Clopper and
Pearson at 1e-4 each, from trials that did not choose the threshold. Keys are fixed, and so is the
outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from motley.privacy.dp_sgd import Descent, private_sgd
from motley.privacy.guarantee import Guarantee
from motley.privacy.noise import derive_key
from motley.privacy.release import private_release
from motley.workload import Split

DELTA = 1e-5
DOUBT = 1e-4
Scores = npt.NDArray[np.float64]


def shown_epsilon(without: Scores, having: Scores) -> float:
    """Return the ε that an attack shows, where a high score speaks for the canary."""
    beta = pytest.importorskip("scipy.stats").beta
    half = len(having) // 2
    candidates = np.quantile(np.concatenate([without[:half], having[:half]]), np.linspace(0, 1, 99))
    shown = 0.0
    for sign, present, absent in ((1, having, without), (-1, without, having)):

        def above(values: Scores, threshold: float, sign: int = sign) -> int:
            return int((sign * values > sign * threshold).sum())

        ratios = [
            (above(present[:half], t) + 1) / (above(absent[:half], t) + 1) for t in candidates
        ]
        threshold = candidates[int(np.argmax(ratios))]
        count = len(present) - half
        hits, alarms = above(present[half:], threshold), above(absent[half:], threshold)
        low = float(beta.ppf(DOUBT, hits, count - hits + 1)) if hits else 0.0
        high = float(beta.ppf(1 - DOUBT, alarms + 1, count - alarms))
        if low > DELTA:
            shown = max(shown, math.log((low - DELTA) / high))
    return shown


def scores(
    attack: Callable[[bytes, bool], float], trials: int, purpose: str
) -> tuple[Scores, Scores]:
    """Return an attack's scores without and with the canary, every trial with noise of its own."""
    return tuple(  # type: ignore[return-value]
        np.array([attack(derive_key(b"canary", purpose, i, having), having) for i in range(trials)])
        for having in (False, True)
    )


def released(noise: float) -> Callable[[bytes, bool], float]:
    """One release of a client whose whole update is the canary, three times as long as the clip."""
    w = {"a": np.zeros(4, np.float32), "b": np.zeros(5, np.float32)}
    canary = {"a": np.zeros(4, np.float32), "b": np.array([3, 0, 0, 0, 0], np.float32)}

    def attack(key: bytes, having: bool) -> float:
        sent = private_release(canary if having else w, w, 1.0, noise, key)
        return float(sent["b"][0])  # type: ignore[arg-type]

    return attack


STEPS = Guarantee(
    mode="ldp-sgd", epsilon=5.0, delta=DELTA, clip=1.0, sampling_rate=0.5, batch_size=4,
    steps_per_task=2,
)  # fmt: skip


def stepped(
    noise: float, purpose: str, runs: int = 3, canaries: int = 1500
) -> tuple[Scores, Scores]:
    """Return the scores of many canaries at once, absent and present ones, in private SGD.

    Logistic regression from zero; each canary has an input of its own and no other. Its gradient
    touches the weights of that input alone, and so do its logits: the canaries are trials apart.
    """
    inputs = np.eye(2 * canaries, dtype=np.float32)[canaries:] * 1e4
    targets = np.zeros(canaries, np.int64)

    def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, y, reduction="none")

    found = []
    for run in range(runs):
        module = torch.nn.Linear(2 * canaries, 2, bias=False)
        torch.nn.init.zeros_(module.weight)
        key = derive_key(b"canary", purpose, run)
        private_sgd(
            module, Split(inputs, targets), loss, STEPS, noise, key, Descent(lambda _: 1e-3)
        )
        weight = module.weight.detach().double().numpy()
        found.append(weight[0] - weight[1])
    together = np.stack(found)
    return together[:, :canaries].ravel(), together[:, canaries:].ravel()


def test_a_release_gives_away_no_more_than_epsilon() -> None:
    guarantee = Guarantee(mode="release", epsilon=5.0, delta=DELTA, clip=1.0)
    found = shown_epsilon(*scores(released(1.0), 4000, "release"))
    assert 1.0 < found <= guarantee.epsilon_of(1.0), "the attack is a good one, and yet bounded"


def test_without_noise_the_attack_on_a_release_succeeds() -> None:
    """With a hundredth of the noise it shows more than was allowed with all of it."""
    promised = Guarantee(mode="release", epsilon=5.0, delta=DELTA, clip=1.0).epsilon_of(1.0)
    assert shown_epsilon(*scores(released(0.01), 4000, "bare")) > promised


def test_noisy_steps_give_away_no_more_than_epsilon() -> None:
    found = shown_epsilon(*stepped(1.2, "steps"))
    assert 0.5 < found <= STEPS.epsilon_of(1.2)


def test_without_noise_the_attack_on_steps_succeeds() -> None:
    assert shown_epsilon(*stepped(0.01, "bare steps")) > STEPS.epsilon_of(1.2)


def test_more_than_the_clip_would_be_found_out() -> None:
    """The bound has teeth: an update that is not clipped shows more than its noise allows."""
    allowed = Guarantee(mode="release", epsilon=5.0, delta=DELTA, clip=1.0).epsilon_of(1.0)

    def unclipped(key: bytes, having: bool) -> float:
        w = {"a": np.zeros(1, np.float32)}
        sent = private_release(w, w, 1.0, 1.0, key)["a"]
        return float(sent[0]) + (7.0 if having else 0.0)  # type: ignore[arg-type]

    assert shown_epsilon(*scores(unclipped, 4000, "unclipped")) > allowed
