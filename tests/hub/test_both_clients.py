"""The tests of this directory with the other major version of huggingface_hub.

transformers holds it below 2, a light installation has 2.x; whichever is here, the other one is put beside it with
pip, once (pytest's cache keeps it), and everything above is run again in a program that sees it first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a version needs that the other one does not bring; the rest of their requirements is the same.
CLIENTS = {
    "1": ["huggingface_hub==1.33.0", "httpx>=0.28,<1", "httpcore>=1,<2", "h11>=0.16", "certifi"],
    "2": ["huggingface_hub==2.4.0", "httpx2>=2,<3", "httpcore2>=2,<3", "truststore>=0.10", "h11>=0.16"],
}


def other_client(keep: Path) -> tuple[str, Path]:
    """The other version's number, and the directory it is installed in.

    Failing to get it fails the test: a check that is skipped where the network is down is none.
    """
    other = "2" if version("huggingface_hub").startswith("1.") else "1"
    wanted = CLIENTS[other]
    target = keep / wanted[0]
    if not target.is_dir():
        partial = Path(shutil.rmtree(keep / "partial", ignore_errors=True) or keep / "partial")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"pip could not fetch {wanted[0]}, the client to test with: {done.stderr[-2000:]}"
        partial.rename(target)
    return wanted[0].partition("==")[2], target


# One of each kind: what is sent and in which order, what is not sent again, refusals, a cut connection either way.
SOME = (
    "test_push.py::test_a_run_is_published_at_once_with_its_card",
    "test_push.py::test_what_has_not_changed_is_not_sent",
    "test_push.py::test_private_and_revision",
    "test_push.py::test_who_may_not",
    "test_push.py::test_a_lost_answer_to_a_commit_is_no_second_commit",
    "test_pull.py::test_a_cut_download_goes_on",
    "test_card.py::test_the_hub_validates_it",
)


@pytest.mark.parametrize("tests", [SOME, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_with_the_other_client(pytestconfig: pytest.Config, tests: tuple[str, ...] | None) -> None:
    number, target = other_client(pytestconfig.cache.mkdir("hub-clients"))  # type: ignore[union-attr]
    places = [str(target), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    seen = [sys.executable, "-c", "import huggingface_hub; print(huggingface_hub.__version__)"]
    assert subprocess.run(seen, env=environment, capture_output=True, text=True).stdout.strip() == number
    here = ROOT / "tests" / "hub"
    # a real training needs transformers, which goes with one of the two only
    left_out = [f"--ignore={__file__}", f"--ignore={here / 'test_real_run.py'}"]
    chosen = (
        [str(here / name) for name in tests] if tests else [str(here), str(ROOT / "tests/test_hubfiles.py"), *left_out]
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout
