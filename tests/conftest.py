import os
from pathlib import Path

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def clean_slate():
    """Each test: float64, an empty param store, seed 0, Pyro's validation on."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def data_folder():
    """The folder of local data sets that `PYROVAE_DATA` names; the test skips without one."""
    folder = os.environ.get("PYROVAE_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set PYROVAE_DATA=path/to/data to run the tests that need local data sets")
    return Path(folder)
