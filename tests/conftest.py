"""What all tests share: a seed before each, one thread, and Hypothesis without luck or a clock."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# The machine may be shared, so no deadlines; the same examples every time, so that a red build
# can be repeated.
settings.register_profile(
    "book", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("book")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked gpu where there is no GPU and no other device is named."""
    if torch.cuda.is_available() or "TRANSFORMER_LIB_TEST_DEVICE" in os.environ:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
