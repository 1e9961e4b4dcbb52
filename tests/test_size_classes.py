"""The scale table: its thresholds to the parameter."""

import pytest

from q4hifi.errors import BadOptionError
from q4hifi.plan.size_classes import SizeClass, size_class_for

B = 1_000_000_000


@pytest.mark.parametrize(
    ("n_params", "scale"),
    [
        (0, SizeClass(8, 0.5, 1.0)),
        (3 * B, SizeClass(8, 0.5, 1.0)),
        (3 * B + 1, SizeClass(10, 0.5, 1.0)),
        (10 * B, SizeClass(10, 0.5, 1.0)),
        (10 * B + 1, SizeClass(10, 0.25, 1.0)),
        (30 * B, SizeClass(10, 0.25, 1.0)),
        (30 * B + 1, SizeClass(12, 0.25, 1.0)),
        (70 * B, SizeClass(12, 0.25, 1.0)),
        (70 * B + 1, SizeClass(16, 0.0, 1.0)),
        (1000 * B, SizeClass(16, 0.0, 1.0)),
    ],
)
def test_thresholds_are_inclusive(n_params, scale):
    assert size_class_for(n_params) == scale


def test_minimal_is_for_more_than_100_billion():
    assert size_class_for(100 * B + 1, minimal=True) == SizeClass(16, 0.0, 0.25)
    for n_params in (1, 70 * B, 100 * B):
        with pytest.raises(BadOptionError, match="above 100 B"):
            size_class_for(n_params, minimal=True)
