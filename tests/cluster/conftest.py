"""Clusters that end with the test that started them."""

from collections.abc import Callable, Iterator

import pytest
from ray_nodes import RayCluster


@pytest.fixture
def start_cluster(need: Callable[..., None]) -> Iterator[Callable[[int], RayCluster]]:
    """`start_cluster(1)` starts a head of one CPU; nodes are added to what it returns."""
    need("bwrap")
    clusters: list[RayCluster] = []

    def start(head_cpus: int) -> RayCluster:
        clusters.append(RayCluster(head_cpus=head_cpus))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.close()
