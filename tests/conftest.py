"""Fixtures that several test files share, what every test draws, and the option that checks all shapes of tensors."""

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path

# before torch is loaded: several test processes share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from typer import testing

# What is loaded and collected stays to the end: to search it for garbage took half the time of collecting the tests.
gc.disable()
# the commands with all their options are put together once in a process, as they are for a user, not at every call
testing._get_command = functools.cache(testing._get_command)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shapes", action="store_true", help="check that every tensor has the shape of its annotation")
    parser.addoption("--seed", type=int, default=0, help="of torch's draws in every test: none may depend on it")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--shapes"):
        from jaxtyping import install_import_hook

        install_import_hook("medseg_attack", "helpers.shapes.checked")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # hypothesis, which pytest loads at the end, looks for what refers to trio's generator


# A test draws the same numbers whatever ran before it in its process, which is different each time: the processes take
# tests from one another. Fixtures, which may be drawn for a former test, have draws of their own.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    draw_from(2 * item.config.getoption("--seed"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    draw_from(2 * item.config.getoption("--seed") + 1)


def draw_from(seed: int) -> None:
    import torch

    # torch.manual_seed would note the stack for each kind of device that is not there: a millisecond of every test
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Of each test process, whatever the environment says: sums of floats depend on how many there are."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> None:
    """What a process wrote, others see at once, even if it is killed: waiting helps against a power cut alone."""
    os.fsync = lambda descriptor: None


@pytest.fixture(scope="session", autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The key that signs what is trusted is not that of the person who runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set; skips where it is absent, since no scan is part of this project."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("MEDATTACK_TEST_DATA", default))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no {name} in {root}; set MEDATTACK_TEST_DATA to where the data sets are")
        return root / name

    return find
