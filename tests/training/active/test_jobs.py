"""Work in processes that fail or die."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from ase_biasgrad.data.labelling import Reference
from ase_biasgrad.training.active.jobs import Jobs, dask_executor, process_executor, running


def square(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    if x == 5:
        os._exit(1)
    return x * x


def test_results_come_with_their_places_and_errors():
    with running(lambda: ThreadPoolExecutor(2)) as jobs:
        found = dict(jobs.results(square, [(x,) for x in range(5)]))
    assert {k: v for k, v in found.items() if k != 3} == {0: 0, 1: 1, 2: 4, 4: 16}
    assert str(found[3]) == "three"


def test_a_worker_that_dies_takes_no_other_work_along():
    with running(process_executor(2, Reference("emt"))) as jobs:
        found = dict(jobs.results(square, [(x,) for x in range(8)]))
        assert dict(jobs.results(square, [(7,)])) == {0: 49}
    good = {k: v for k, v in found.items() if k not in (3, 5)}
    assert good == {0: 0, 1: 1, 2: 4, 4: 16, 6: 36, 7: 49}
    assert isinstance(found[3], ValueError)
    assert isinstance(found[5], Exception)


def test_a_dask_cluster_whose_worker_is_killed_does_all_work():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        jobs = Jobs(dask_executor(cluster.scheduler_address, Reference("emt")))
        work = jobs.results(slow_square, [(x,) for x in range(12)])
        found = dict([next(work)])
        next(iter(cluster.workers.values())).process.process._process.kill()
        found |= dict(work)
        jobs.close()
    assert found == {x: x * x for x in range(12)}


def slow_square(x: int) -> int:
    import time

    time.sleep(0.2)
    return x * x
