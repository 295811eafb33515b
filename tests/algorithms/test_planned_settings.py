"""What a plan says to devices of an older version: nothing that they do not know, unless asked."""

from __future__ import annotations

import pytest

from motley.algorithms import registry
from motley.algorithms.quped import QuPeD

KNOWN = {
    "binaryrelax": """
        growth hard_fraction iterations_per_epoch learning_rate local_steps lr_decay
        relaxation weight_decay
    """,
    "fedavg": """
        clip iterations_per_epoch learning_rate local_steps lr_decay microbatch momentum
        privacy spare_tasks weight_decay weighting
    """,
    "fedmpq": """
        activation_bits allocation budget frozen_signs iterations_per_epoch lasso
        learning_rate local_steps lr_decay momentum prune_below range_rate rounding strict
        tail use_removed_bits weight_decay weighting
    """,
    "fedp3": """
        aggregation clip gradient_clip head iterations_per_epoch keep layers learning_rate
        local_keep local_pruning local_steps lr_decay microbatch momentum plan privacy
        proximal pruning spare_tasks temperature trainer upload_keep upload_pruning
        upload_step weight_decay
    """,
    "fedpaq": """
        clip iterations_per_epoch learning_rate local_steps lr_decay microbatch momentum
        privacy spare_tasks weight_decay weighting
    """,
    "fml": """
        iterations_per_epoch label_share learning_rate local_steps lr_decay momentum
        shared_label_share temperature weight_decay
    """,
    "local": """
        centre_penalty centre_rate centre_step centres clamp finetune_centre_factor
        finetune_fraction gradient_clip iterations_per_epoch learning_rate local_steps
        lr_decay mode penalty pull_clip start steepness weight_decay
    """,
    "perfedavg": """
        adaptation_rate adaptation_steps iterations_per_epoch learning_rate local_steps
        lr_decay weight_decay
    """,
    "pfedme": """
        inner_steps iterations_per_epoch learning_rate local_steps lr_decay proximity
        server_rate shared_rate weight_decay
    """,
    "proxquant": """
        finetune_fraction iterations_per_epoch learning_rate local_steps lr_decay penalty
        scale scale_factor weight_decay
    """,
    "quped": """
        centre_penalty centre_rate centre_step centres clamp distillation
        finetune_centre_factor finetune_fraction gradient_clip iterations_per_epoch
        learning_rate local_steps lr_decay mode penalty pull_clip shared_rate start
        steepness temperature weight_decay
    """,
    "qupel": """
        centre_penalty centre_rate centre_step centres clamp finetune_centre_factor
        finetune_fraction gradient_clip iterations_per_epoch learning_rate local_steps
        lr_decay mode penalty proximity pull_clip shared_rate start steepness ties
        weight_decay
    """,
    "uveqfed": """
        clip iterations_per_epoch lattice learning_rate local_steps lr_decay microbatch
        momentum privacy reach spare_tasks weight_decay weighting
    """,
}
"""Settings that devices knew first. Never to be added to: what comes later is `LATER`."""


@pytest.mark.parametrize("name", registry.names())
def test_a_plan_of_defaults_names_what_devices_knew_first(name: str) -> None:
    assert set(registry.find(name).configure({}).settings.planned()) == set(KNOWN[name].split())


def test_a_later_setting_is_planned_where_it_is_set() -> None:
    planned = QuPeD.configure({"personal_start": "global", "distillation": 0.5}).settings.planned()
    assert planned["personal_start"] == "global"
    assert planned["distillation"] == 0.5
    assert QuPeD.configure(planned).settings.planned() == planned
    assert "personal_start" not in QuPeD.configure({"personal_start": "seed"}).settings.planned()
