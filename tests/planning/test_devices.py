"""Devices by name, and how long collectives take between them."""

from __future__ import annotations

import pytest

from luthier.core.errors import InputError
from luthier.planning.devices import DEVICES, NETWORK_SHARE, RING_HOP, START, Cluster


def cluster(devices: str = "8xH100", nodes: int | None = None) -> Cluster:
    made = Cluster.parse(devices, nodes)
    assert made is not None
    return made


def test_a_cluster_is_read_however_its_device_is_spelled() -> None:
    assert Cluster.parse(None) is None
    found = cluster("4 x rtx 4090", 3)
    assert (found.name, found.per_node, found.nodes, found.ranks) == ("RTX-4090", 4, 3, 12)
    assert cluster("8xa100_80gb").name == "A100-80GB" and cluster().nodes == 1


@pytest.mark.parametrize(
    ("devices", "nodes", "message"),
    [
        ("0xH100", None, "'0xH100' is not a number from 1 to 1,024, an x and a device"),
        ("H100", None, "'H100' is not a number"),
        ("9999xH100", None, "'9999xH100' is not a number"),
        ("8xFOO", None, r"unknown device 'FOO'\n  fix: one of A100-40GB, .*MI300X"),
        ("8xA100", None, r"unknown device 'A100' \(did you mean 'A100-"),
        ("8xH100", 0, "--nodes: 0 is not between"),
        (None, 2, "--devices says what is in one node"),
    ],
)
def test_a_mistake_names_the_option_and_the_fix(devices: str | None, nodes: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cluster.parse(devices, nodes)


def test_every_device_is_measured_below_what_its_clocks_allow() -> None:
    for name, device in DEVICES.items():
        assert 0.4 < device.matmul / device.peak < 1.2, name  # GeForce boosts beyond the clock of its data sheet
        assert 15e9 < device.memory < 200e9 and device.source, name


def test_a_ring_moves_each_byte_once_less_the_own_share() -> None:
    eight, size = cluster(), 8e9
    link = eight.device.link
    assert eight.gather(size, 8, 1) == pytest.approx(START + 7 * link.ring_hop + 7e9 / link.rate)
    assert eight.reduce(size, 8, 1) == pytest.approx(START + 2 * (7 * link.ring_hop + 7e9 / link.rate))
    assert eight.gather(size, 1, 1) == eight.reduce(size, 1, 1) == 0


def test_a_small_sum_over_many_devices_goes_over_trees() -> None:
    many = cluster(nodes=128)
    assert many.reduce(1e3, 8, 128) < 0.1 * 2 * 127 * RING_HOP


def test_between_nodes_groups_share_the_adapters() -> None:
    fast, slow = cluster(nodes=4), cluster("8xL40S", 4)
    assert fast.rate(8, 4) == fast.device.link.rate, "eight adapters of 50 GB/s are more than one NVLink"
    assert fast.rate(1, 4) == NETWORK_SHARE * 50e9, "each device has an adapter of its own"
    assert slow.rate(8, 4) == NETWORK_SHARE * 12.5e9, "one adapter for the node"
    assert slow.rate(1, 4) == slow.rate(8, 4) / 8
