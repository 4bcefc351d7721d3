"""Fixtures of the kernel's tests: the devices, and the marker of kernel-builder's CI."""

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernels_ci: runs in kernel-builder's CI")


# A build for CUDA contains both.
@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    return request.param
