"""The scale table: its thresholds to the parameter."""

import pytest

from q4hifi.errors import BadOptionError
from q4hifi.plan.size_classes import Scale, scale_for

B = 1_000_000_000


@pytest.mark.parametrize(
    ("n_params", "scale"),
    [
        (0, Scale(8, 0.5, 1.0)),
        (3 * B, Scale(8, 0.5, 1.0)),
        (3 * B + 1, Scale(10, 0.5, 1.0)),
        (10 * B, Scale(10, 0.5, 1.0)),
        (10 * B + 1, Scale(10, 0.25, 1.0)),
        (30 * B, Scale(10, 0.25, 1.0)),
        (30 * B + 1, Scale(12, 0.25, 1.0)),
        (70 * B, Scale(12, 0.25, 1.0)),
        (70 * B + 1, Scale(16, 0.0, 1.0)),
        (1000 * B, Scale(16, 0.0, 1.0)),
    ],
)
def test_thresholds_are_inclusive(n_params, scale):
    assert scale_for(n_params) == scale


def test_minimal_is_for_more_than_100_billion():
    assert scale_for(100 * B + 1, minimal=True) == Scale(16, 0.0, 0.25)
    for n_params in (1, 70 * B, 100 * B):
        with pytest.raises(BadOptionError, match="above 100 B"):
            scale_for(n_params, minimal=True)
