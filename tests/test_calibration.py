"""Calibration and thresholds where validation images fail them; the arithmetic: test_metrics."""

import pytest

from ganscope.detector.calibration import calibrate, choose_thresholds
from ganscope.errors import GanscopeError


@pytest.mark.parametrize(
    ("labels", "missing"), [([0, 0, 0], "fakes"), ([1, 1, 1], "reals"), ([], "reals")]
)
def test_one_class_is_a_clear_error(labels: list[int], missing: str) -> None:
    values = [0.1, 0.5, 0.9][: len(labels)]
    for fit in (calibrate, choose_thresholds):
        with pytest.raises(GanscopeError, match=f"no readable {missing}"):
            fit(values, labels)


def test_a_detector_that_is_certain_of_all_images_calls_none_fake() -> None:
    """Scores of 1 for reals and fakes: no threshold keeps false alarms at 1 %, so none is
    reached.
    """
    found = choose_thresholds([1.0] * 100, [0] * 50 + [1] * 50)
    assert found["fake"] > 1
    assert found["real"] <= 1
