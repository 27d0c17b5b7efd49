"""GPUs by name and how they are joined: what data sheets say and what others measured. Loads nothing."""

import re
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal, NamedTuple

from luthier.core.errors import InputError, did_you_mean

LARGEST_NODE, MOST_NODES = 1024, 65_536
"""Most devices of a node, and most nodes, that a plan takes."""
START = 8.4e-6
"""Seconds that a collective takes to start (NCCL, src/graph/tuning.cc: baseLat of Simple)."""
RING_HOP, TREE_HOP = 14e-6, 14e-6
"""Seconds of one step of a ring or tree between two nodes (NCCL, the same file: hwLat, NET)."""
NETWORK_SHARE = 0.9
"""Share of a network's rate that large collectives reach: 376 of 400 GB/s between four nodes of B200
(ml-engineering, network/benchmarks)."""


class Link(NamedTuple):
    """What joins the devices of one node."""

    name: str
    bandwidth: float
    """Bytes a second of one device in one direction, by its specification."""
    share: float
    """Share of that which large collectives reach."""
    ring_hop: float
    """Seconds of one step of a ring (NCCL, src/graph/tuning.cc: hwLat of Simple)."""
    tree_hop: float = 4e-6
    """Seconds of one step of a tree."""

    @property
    def rate(self) -> float:
        """Bytes a second that a large collective moves through one device."""
        return self.bandwidth * self.share


# NVLink: 235 of 300 GB/s on A100, xGMI: 313 of 448 (ml-engineering, network). PCIe: 28 of 64 GB/s with 8 RTX 5090, 35
# with 4 (NVIDIA/nccl issue 1639): it goes through the processor's memory.
NVLINK_2, NVLINK_3 = Link("NVLink 2", 150e9, 0.8, 3.4e-6), Link("NVLink 3", 300e9, 0.8, 3.4e-6)
NVLINK_4, NVLINK_5 = Link("NVLink 4", 450e9, 0.8, 3.4e-6), Link("NVLink 5", 900e9, 0.8, 3.4e-6)
XGMI = Link("Infinity Fabric", 448e9, 0.7, 3.4e-6)
PCIE_3, PCIE_4 = Link("PCIe 3.0 x16", 16e9, 0.5, 5.7e-6), Link("PCIe 4.0 x16", 32e9, 0.5, 5.7e-6)
PCIE_5 = Link("PCIe 5.0 x16", 64e9, 0.5, 5.7e-6)


class Network(NamedTuple):
    """What joins nodes where nothing else is known: the network of the vendor's own server, or 100 Gb/s."""

    name: str
    bandwidth: float
    """Bytes a second of one adapter in one direction."""
    devices: int
    """Devices of a node that share one adapter."""


INFINIBAND_400 = Network("400 Gb/s for each device", 50e9, 1)  # DGX H100, H200 and B200: eight ConnectX-7
INFINIBAND_200 = Network("200 Gb/s for each device", 25e9, 1)  # DGX A100: eight ConnectX-6
INFINIBAND_100 = Network("100 Gb/s for two devices", 12.5e9, 2)  # DGX-1: four EDR adapters
ETHERNET_100 = Network("100 Gb/s for each node", 12.5e9, LARGEST_NODE)


@dataclass(frozen=True, slots=True)
class DeviceType:
    """One GPU; rates are dense, with sums in float32."""

    peak: float
    """Floating-point operations a second in half precision, by the data sheet."""
    matmul: float
    """The same, measured: the best of large square products in torch."""
    memory: int
    """Bytes, by the data sheet."""
    bandwidth: float
    """Bytes a second of its memory, by the data sheet."""
    link: Link
    network: Network
    source: str
    """Data sheet."""
    half: Literal["bf16", "fp16"] = "bf16"
    """The half precision that it computes in; those of fp16 have no kernel for packed rows either."""


def _device(peak: float, matmul: float, memory: int, bandwidth: float, *rest: object, **options: object) -> DeviceType:
    """A device from TFLOP/s, GB and GB/s."""
    return DeviceType(peak * 1e12, matmul * 1e12, memory * 10**9, bandwidth * 1e9, *rest, **options)  # type: ignore[arg-type]


# Measured: zzc0721/torch-performance-test-data, database.md of 2026-01-12 (torch.mm up to 10,240 wide; the median where
# it has several). MI300X: ml-engineering, MAMF. A10: in neither; given the share of the L4, which is as short of power.
DEVICES: dict[str, DeviceType] = {
    "A100-40GB": _device(312, 246, 40, 1555, NVLINK_3, INFINIBAND_200, "NVIDIA A100 Tensor Core GPU, SXM4 40 GB"),
    "A100-80GB": _device(312, 265, 80, 2039, NVLINK_3, INFINIBAND_200, "NVIDIA A100 Tensor Core GPU, SXM4 80 GB"),
    "H100": _device(989, 784, 80, 3350, NVLINK_4, INFINIBAND_400, "NVIDIA H100 Tensor Core GPU, SXM5"),
    "H200": _device(989, 790, 141, 4800, NVLINK_4, INFINIBAND_400, "NVIDIA H200 Tensor Core GPU, SXM5"),
    "B200": _device(2250, 1696, 180, 8000, NVLINK_5, INFINIBAND_400, "NVIDIA DGX B200, one of eight"),
    "L4": _device(121, 71, 24, 300, PCIE_4, ETHERNET_100, "NVIDIA L4 Tensor Core GPU"),
    "L40S": _device(362, 269, 48, 864, PCIE_4, ETHERNET_100, "NVIDIA L40S GPU"),
    "RTX-3090": _device(71, 76, 24, 936, PCIE_4, ETHERNET_100, "NVIDIA Ampere GA102 whitepaper"),
    "RTX-4090": _device(165, 165, 24, 1008, PCIE_4, ETHERNET_100, "NVIDIA Ada GPU architecture whitepaper"),
    "RTX-5090": _device(209, 236, 32, 1792, PCIE_5, ETHERNET_100, "NVIDIA RTX Blackwell architecture whitepaper"),
    "A10": _device(125, 73, 24, 600, PCIE_4, ETHERNET_100, "NVIDIA A10 Tensor Core GPU"),
    "T4": _device(65, 42, 16, 300, PCIE_3, ETHERNET_100, "NVIDIA T4 Tensor Core GPU", half="fp16"),
    "V100": _device(125, 95, 32, 900, NVLINK_2, INFINIBAND_100, "NVIDIA V100 GPU, SXM2 32 GB", half="fp16"),
    "MI300X": _device(1307, 668, 192, 5300, XGMI, INFINIBAND_400, "AMD Instinct MI300X data sheet"),
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes with the same number of the same device."""

    name: str
    device: DeviceType
    per_node: int
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """Devices in all: each is one process."""
        return self.per_node * self.nodes

    @classmethod
    def parse(cls, devices: str | None, nodes: int | None = None) -> "Cluster | None":
        """The cluster of `8xH100` and a number of nodes; None where neither is given.

        InputError where a number is less than one or too large, or no device has that name.
        """
        if devices is None:
            if nodes is not None:
                fix = "--devices 8xH100 --nodes 4"
                raise InputError("--nodes: of what? --devices says what is in one node", fix=fix)
            return None
        found = re.fullmatch(r"(\d{1,9})\s*x\s*(\S.*)", devices.strip(), re.IGNORECASE)
        if found is None or not 1 <= int(found[1]) <= LARGEST_NODE:
            what = f"--devices: {devices!r} is not a number from 1 to {LARGEST_NODE:,}, an x and a device"
            raise InputError(what, fix="--devices 8xH100")
        name = next((name for name in DEVICES if _plain(name) == _plain(found[2])), None)
        if name is None:
            near = [name for name in DEVICES if _plain(name).startswith(_plain(found[2]))]
            hint, known = did_you_mean(found[2], near or DEVICES), ", ".join(DEVICES)
            raise InputError(f"--devices: unknown device {found[2]!r}{hint}", fix=f"one of {known}")
        if nodes is not None and not 1 <= nodes <= MOST_NODES:
            raise InputError(f"--nodes: {nodes:,} is not between 1 and {MOST_NODES:,}", fix="--nodes 4")
        return cls(name, DEVICES[name], int(found[1]), nodes or 1)

    def rate(self, inside: int, nodes: int) -> float:
        """Bytes a second through one member of a group with `inside` members on each of `nodes` nodes."""
        network = self.device.network
        adapters = ceil(self.per_node / network.devices)
        # Other groups of the same kind use the adapters at the same time.
        between = network.bandwidth * NETWORK_SHARE * adapters * inside / self.per_node
        rates = [self.device.link.rate] * (inside > 1) + [between] * (nodes > 1)
        return min(rates, default=float("inf"))

    def gather(self, size: float, inside: int, nodes: int) -> float:
        """Seconds of an all-gather to `size` bytes, or of a reduce-scatter of them, around a ring."""
        return self._ring(size, inside, nodes, rounds=1)

    def reduce(self, size: float, inside: int, nodes: int) -> float:
        """Seconds of an all-reduce of `size` bytes: around a ring or over trees, what is faster (as NCCL decides)."""
        if inside * nodes == 1:
            return 0.0
        hops = (inside - 1) * self.device.link.tree_hop + log2(nodes) * TREE_HOP
        tree = START + 2 * hops + 2 * size / (0.9 * self.rate(inside, nodes))
        return min(tree, self._ring(size, inside, nodes, rounds=2))

    def _ring(self, size: float, inside: int, nodes: int, rounds: int) -> float:
        members = inside * nodes
        if members == 1:
            return 0.0
        hops = (members - nodes) * self.device.link.ring_hop + (nodes - 1) * RING_HOP
        return START + rounds * (hops + (members - 1) / members * size / self.rate(inside, nodes))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
