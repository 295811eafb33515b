"""Trained models, made once for all tests of exports."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_cases import FEDMPQ, QUPED, VARIANTS, packed, train

from motley.export.packed import PackedModel


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of 1, 2 and 4 bits and of full precision, by tier, in order of client."""
    return train(QUPED, tmp_path_factory.mktemp("quped"))


@pytest.fixture(scope="session")
def models(finished: dict[str, Path]) -> dict[str, PackedModel]:
    """The same, read."""
    return {tier: packed(path, VARIANTS[tier]) for tier, path in finished.items()}


@pytest.fixture(scope="session")
def planes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackedModel]:
    """Models of FedMPQ, whose weights are integers of a bit-width of their own in each layer."""
    found = train(FEDMPQ, tmp_path_factory.mktemp("fedmpq"))
    return {tier: packed(path, "cnn1", "fedmpq") for tier, path in found.items()}
