"""What a run comes to, on curves of the shapes that runs have."""

import pytest

from core.jobs.verdict import Curves, VerdictKind, judge

# Held-out losses before training and at the ends of epochs.
RISING_AGAIN = (3.71, 1.42, 0.61, 0.49, 0.52, 0.60)
LEVEL = (2.90, 1.31, 1.022, 1.004, 1.001)
FALLING = (3.20, 2.61, 2.23)
NOWHERE = (1.52, 1.53, 1.55)


def curves(losses: tuple[float, ...], *, held_out_rows: int = 50, published_step: int | None = None) -> Curves:
    """A run of ten steps an epoch that was evaluated at the end of each, and publishes its best step."""
    evaluations = [(10 * epoch, loss) for epoch, loss in enumerate(losses)]
    best = min(evaluations[1:], key=lambda one: one[1], default=(0, 0.0))[0]
    return Curves((3.0, 0.4), evaluations, held_out_rows, best if published_step is None else published_step)


@pytest.mark.parametrize(
    ("losses", "kind", "step"),
    [
        (RISING_AGAIN, VerdictKind.OVERFITTED, 30),
        (LEVEL, VerdictKind.CONVERGED, 40),
        (FALLING, VerdictKind.STILL_IMPROVING, 20),
        ((3.2, 2.6), VerdictKind.STILL_IMPROVING, 10),
        (NOWHERE, VerdictKind.DID_NOT_LEARN, 10),
        ((1.52, 1.519, 1.518), VerdictKind.DID_NOT_LEARN, 20),
        ((2.0, 1.0, 1.005), VerdictKind.CONVERGED, 10),  # a rise that is noise
        ((2.0, 1.0, 1.02), VerdictKind.OVERFITTED, 10),
    ],
)
def test_a_curve_has_its_verdict(losses: tuple[float, ...], kind: VerdictKind, step: int) -> None:
    found = judge(curves(losses))
    assert (found.kind, found.step) == (kind, step)
    if kind is VerdictKind.OVERFITTED:
        assert f"since step {step}" in found.message
        assert f"{min(losses):.3f}" in found.message


@pytest.mark.parametrize(("held_out_rows", "said"), [(1, "1 held-out row,"), (19, "19 held-out rows,")])
@pytest.mark.parametrize("losses", [RISING_AGAIN, LEVEL, NOWHERE])
def test_too_few_rows_tell_nothing_whatever_they_show(losses: tuple[float, ...], held_out_rows: int, said: str) -> None:
    found = judge(curves(losses, held_out_rows=held_out_rows))
    assert found.kind is VerdictKind.MEASURED_ON_TOO_LITTLE
    assert said in found.message


def test_without_held_out_rows_the_training_loss_proves_nothing() -> None:
    found = judge(Curves((3.0, 0.4), [], 0, 60))
    assert (found.kind, found.step) == (VerdictKind.NOT_MEASURED, None)
    assert "3.000 to 0.400" in found.message
    assert judge(Curves((), [], 0, 1)).kind is VerdictKind.NOT_MEASURED


def test_an_overfitted_run_says_which_step_it_publishes() -> None:
    assert "step is published" in judge(curves(RISING_AGAIN)).message
    assert "is not the one that is published" in judge(curves(RISING_AGAIN, published_step=50)).message


def test_losses_that_differ_are_not_said_to_be_the_same() -> None:
    assert "(0.520) and rose to 0.526" in judge(curves((2.0, 0.520, 0.5262))).message
    assert "from 1.861 to 0.00069," in judge(curves((1.861, 0.00069), held_out_rows=1)).message
