"""Random small jobs, on lightning 2.6.6 and on the engine: everything they leave behind must agree.

A job that does not is shrunk by hypothesis and printed as `Job(...)`, which
`python -m tests.parity.differential "Job(...)"` runs again. PARITY_JOBS sets how many are drawn.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.parity.differential import as_json, disagreement, parted
from tests.parity.found import FOUND
from tests.parity.framework import REFERENCE, load_framework
from tests.parity.play import play
from tests.parity.random_job import Job, jobs

pytest.importorskip("lightning.pytorch", reason="the reference is installed by `nox -s parity` only")

COUNT = int(os.environ.get("PARITY_JOBS", "300"))
OURS = os.environ.get("PARITY_FRAMEWORK", "engine")


@pytest.mark.timeout(1800)
@settings(max_examples=COUNT, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_random_jobs_agree_with_the_reference(job: Job) -> None:
    found = disagreement(load_framework(REFERENCE), load_framework(OURS), job)
    assert not found, f"{job}\n{found}"


@pytest.mark.parametrize("name", FOUND)
def test_jobs_that_once_differed_agree(name: str) -> None:
    found = disagreement(load_framework(REFERENCE), load_framework(OURS), FOUND[name])
    assert not found, f"{FOUND[name]}\n{found}"


def test_a_difference_is_seen() -> None:
    reference = load_framework(REFERENCE)
    plain = as_json(play(reference, Job()))
    other = as_json(play(reference, Job(trainer={"accumulate_grad_batches": 2})))
    assert "expected" in parted(plain, other)
    assert parted(plain, as_json(play(reference, Job()))) == ""
