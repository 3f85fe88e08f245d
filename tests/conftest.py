"""What all tests share: a seed before each, one thread, and Hypothesis without luck or a clock."""

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
