"""Distillation: closed forms against autograd, and the mean over the batch."""

from __future__ import annotations

import numpy.testing as npt
import pytest
import torch
from torch.nn import functional
from toy import Toy

from motley.training.distillation import Objective, Signal

DOUBLE = torch.float64


def outputs(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=DOUBLE)


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return torch's own KL(teacher ‖ student) T², mean over all but the classes."""
    value = functional.kl_div(
        torch.log_softmax(student / temperature, 1),
        torch.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="sum",
    )
    return value * temperature**2 * teacher.shape[1] / teacher.numel()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 2)])
def test_divergence_and_both_gradients(temperature: float, shape: tuple[int, ...]) -> None:
    teacher = outputs(0, *shape).requires_grad_()
    students = [outputs(1, *shape).requires_grad_(), outputs(2, *shape).requires_grad_()]
    signal = Signal(teacher, temperature)
    expected = [kl(student, teacher, temperature) for student in students]
    of_teacher, *of_students = torch.autograd.grad(sum(expected), [teacher, *students])
    for student, value, gradient in zip(students, expected, of_students, strict=True):
        mine = signal.divergence(student)
        npt.assert_allclose(mine.item(), value.item(), rtol=1e-12)
        npt.assert_allclose(torch.autograd.grad(mine, student)[0], gradient, atol=1e-12)
    npt.assert_allclose(
        signal.teacher_gradient([s.detach() for s in students]), of_teacher, atol=1e-12
    )


def test_the_closed_form_of_the_paper() -> None:
    """∂KL/∂z_k = p_k (log p_k - log s_k - KL), for one sample."""
    teacher, student = outputs(3, 1, 5), outputs(4, 1, 5)
    log_p, log_s = torch.log_softmax(teacher, 1), torch.log_softmax(student, 1)
    value = (log_p.exp() * (log_p - log_s)).sum()
    expected = log_p.exp() * (log_p - log_s - value)
    npt.assert_allclose(Signal(teacher).teacher_gradient([student]), expected, atol=1e-14)


def test_the_student_is_taught_nothing_by_its_own_outputs() -> None:
    same = outputs(5, 4, 3)
    assert Signal(same).divergence(same).abs().item() < 1e-14
    npt.assert_allclose(Signal(same).teacher_gradient([same]), torch.zeros(4, 3), atol=1e-15)


def test_objective_weighs_labels_and_teacher() -> None:
    mine, teacher = outputs(6, 4, 3), outputs(7, 4, 3)
    targets = torch.tensor([0, 1, 2, 1])
    label = functional.cross_entropy(mine, targets)
    assert Objective(Toy(), targets)(mine).item() == pytest.approx(label.item())
    both = Objective(Toy(), targets, Signal(teacher), 0.3)(mine)
    assert both.item() == pytest.approx(0.7 * label.item() + 0.3 * kl(mine, teacher, 1).item())
