"""The processes that train one run together: rank 0 leads the run, the others follow its orders.

The leader alone reads data, decides, and writes the run folder. A follower waits for orders: each has a name and
arguments, and the follower's handler of that name takes its part in the work. So whatever a policy of the run decides
is decided once, and a follower needs no data but its share of a step.

Every process tells a store each second that it lives. One that is silent for LIMIT seconds, because it was killed,
stopped or cut off, is named by the others, which end. Nobody waits for it longer.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from luthier.core.errors import InputError, LuthierError
from luthier.core.strict_json import to_json

BEGUN = "LUTHIER_BEGUN"
"""Environment variable of the processes that a command starts for itself: it has shown how it begins."""
LIMIT = "LUTHIER_RANK_TIMEOUT"
"""Environment variable: seconds after which a silent process counts as lost."""
SECONDS = 60.0
"""Its default."""
BEAT = 1.0
"""Seconds between signs of life."""
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
"""What torchrun, Ray and others set for each process. Accelerate would take these for an order to wrap the model."""


class RankLost(LuthierError):
    """A process of the run is gone or failed; the run resumes from its last checkpoint."""


class Followed(LuthierError):
    """The leader has said, or will say, what is wrong: a follower ends without a word, by the leader's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Ranks:
    """The place of this process among those of the run. One process alone is rank 0 of 1, and nothing is sent."""

    def __init__(
        self, rank: int = 0, world: int = 1, local: int = 0, hosts: Sequence[str] = (), on_host: int = 1
    ) -> None:
        """`on_host` of the processes run on the host of this one, whose place among them is `local`."""
        self.rank, self.world, self.local, self.hosts, self.on_host = rank, world, local, hosts, on_host
        self._watch: _Watch | None = None

    @property
    def several(self) -> bool:
        """Whether the run has more than this process."""
        return self.world > 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def order(self, name: str, *args: Any) -> None:
        """Let every follower call its handler `name` with these arguments. Call it as leader."""
        self.told((name, args))

    def share(self, name: str, parts: Sequence[Any]) -> Any:
        """The same, with one of `parts` for each rank as its argument; returns that of the leader."""
        if not self.several:
            return parts[0]
        self.order(name)
        return self.scattered(parts)

    def scattered(self, parts: Sequence[Any] = ()) -> Any:
        """Receive the part of this rank in what the leader shares out by `share`."""
        import torch.distributed as dist

        mine: list[Any] = [None]
        with self._named():
            dist.scatter_object_list(mine, list(parts) if self.leads else None, src=0)
        return mine[0]

    def told(self, value: Any) -> Any:
        """The value that the leader has here, on every rank."""
        if not self.several:
            return value
        import torch.distributed as dist

        sent = [value]
        with self._named():
            dist.broadcast_object_list(sent, src=0)
        return sent[0]

    def gathered(self, value: Any) -> list[Any]:
        """The value of every rank, in their order, for the leader; an empty list for a follower."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world if self.leads else []
        with self._named():
            dist.gather_object(value, found if self.leads else None, dst=0)
        return found

    def results(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` returned on every rank, for the leader. RankLost there where it failed on a follower."""
        if not self.several:
            return [work()]
        value, failure = None, None
        try:
            value = work()
        except Exception as error:
            if self.leads:
                self.gathered((None, None))  # the followers wait for it
                raise
            failure = f"{type(error).__name__}: {error}"
        found = self.gathered((value, failure))
        for rank, (_, why) in enumerate(found):
            if why:
                raise RankLost(f"{self.name(rank)} failed: {why}")
        return [each for each, _ in found]

    def summed(self, tensor: Any) -> Any:
        """The tensor with the sum over all ranks in it."""
        if self.several:
            import torch.distributed as dist

            with self._named():
                dist.all_reduce(tensor)
        return tensor

    def most(self, number: int) -> int:
        """The largest of the numbers of all ranks."""
        import torch
        import torch.distributed as dist

        found = torch.tensor(number)
        with self._named():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def serve(self, handlers: Mapping[str, Callable[..., None]]) -> None:
        """Follow the leader's orders until it sends `end`."""
        while True:
            name, args = self.told(None)
            if name == "end":
                return
            handlers[name](*args)

    def name(self, rank: int) -> str:
        """`rank 2 (host gpu-b)`."""
        return f"rank {rank} (host {self.hosts[rank]})" if rank < len(self.hosts) else f"rank {rank}"

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A transfer that fails because another process is gone says which one."""
        try:
            yield
        except RuntimeError as error:
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            why, code = self._watch.over() if self._watch is not None else ("", 1)
            if self.leads:
                raise RankLost(why or f"the processes of the run lost their connection: {what}", fix=AGAIN) from None
            raise Followed(why or what, code) from None


AGAIN = "rerun the same command to resume from the last checkpoint"
ALONE = Ranks()
_here: list[Ranks] = []


def here() -> Ranks:
    """The place of this process among those of its run."""
    return _here[-1] if _here else ALONE


def started() -> bool:
    """Whether torchrun, Ray or another launcher started this process beside others of one run."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


def limit() -> float:
    """Seconds after which a silent process counts as lost. InputError where LUTHIER_RANK_TIMEOUT is no such number."""
    given = os.environ.get(LIMIT) or str(SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 5 <= seconds <= 86400:
        raise InputError(f"{LIMIT}: {given!r} is not a number of seconds between 5 and 86400", fix=f"{LIMIT}=60")
    return seconds


@contextmanager
def joined(device: str, facts: Mapping[str, str]) -> Iterator[Ranks]:
    """Join the other processes that the launcher started, for a run on `device`; alone where it started none.

    `facts` are what must be equal everywhere, such as versions and a hash of the recipe. InputError, on every rank,
    where they differ, where a rank does not come within the limit, or where a machine has fewer devices than ranks.
    """
    if not started() or _here:
        yield here()
        return
    import torch
    import torch.distributed as dist

    place = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    rank, world, local = int(place["RANK"]), int(place["WORLD_SIZE"]), int(place.get("LOCAL_RANK", place["RANK"]))
    try:
        _refuse_device(device, local, int(place.get("LOCAL_WORLD_SIZE", 1)))
        seconds = limit()
        store = _store(rank, world, seconds)
        hosts = _agreed(store, rank, world, {"host": socket.gethostname(), **facts}, seconds)
    except InputError as error:  # the same on every rank of this host: one of them says it
        if local:
            raise Followed(error.message, error.exit_code) from None
        raise
    if device == "cuda":
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    # No transfer times out by itself: a follower waits while the leader reads data. Signs of life end what hangs.
    group = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=group, rank=rank, world_size=world, timeout=timedelta(days=30))
    ranks = Ranks(rank, world, local, hosts, int(place.get("LOCAL_WORLD_SIZE") or hosts.count(hosts[rank])))
    ranks._watch = _Watch(store.clone(), ranks, seconds)
    _here.append(ranks)
    try:
        yield ranks
        if ranks.leads:
            ranks.order("end")
            ranks._watch.let_others_leave()
    except BaseException as error:
        if not isinstance(error, Followed):
            said = error.message if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
            ranks._watch.give_up(f"{ranks.name(rank)}: {said}", getattr(error, "exit_code", 1))
            ranks._watch.let_others_leave()
        if not ranks.leads:
            ranks._watch.let_leader_speak()
        raise
    finally:
        ranks._watch.stop()
        _here.clear()
        os.environ.update(place)
        with suppress(RuntimeError):  # the other side is gone already
            dist.destroy_process_group()


def _refuse_device(device: str, local: int, count: int) -> None:
    """InputError where this host cannot serve its processes."""
    import torch
    import torch.distributed as dist

    there = torch.cuda.device_count() if device == "cuda" else count
    if count > there:
        why = f"{count} processes were started on the host {socket.gethostname()}, which has {there} GPU"
        raise InputError(why + "s" * (there != 1), fix=f"train.processes={there}, or torchrun --nproc-per-node {there}")
    if device == "cuda" and not dist.is_nccl_available():
        raise InputError("this build of torch has no NCCL, which connects GPUs", fix="a build of torch for CUDA")
    if device != "cuda" and not dist.is_gloo_available():
        raise InputError("this build of torch has no gloo, which connects processes", fix="train.processes=1")


def _store(rank: int, world: int, seconds: float) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT: the launcher's own, or one that rank 0 opens."""
    from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise InputError("MASTER_ADDR and MASTER_PORT must name rank 0's host and a free port", fix="start by torchrun")
    try:
        socket.getaddrinfo(address, int(port))
    except OSError as error:
        why = f"MASTER_ADDR: the host {address!r} cannot be found ({error.strerror or error})"
        raise InputError(why, fix="the name or address of rank 0's host") from None
    launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    opens = rank == 0 and not launchers
    late = threading.Timer(2 * seconds, _no_answer, (rank, f"{address}:{port}", seconds))
    late.daemon = True
    late.start()
    try:
        store = TCPStore(
            address, int(port), world, opens, timedelta(seconds=seconds), wait_for_workers=False, multi_tenant=True
        )
    except (DistNetworkError, DistStoreError) as error:
        what = str(error).strip().splitlines()[0]
        if opens:
            raise InputError(f"MASTER_PORT: port {port} cannot be opened: {what}", fix="another MASTER_PORT") from None
        why = f"rank {rank}: rank 0 cannot be reached at {address}:{port} within {seconds:.0f} s: {what}"
        raise InputError(why, fix="check MASTER_ADDR, MASTER_PORT and the network between the hosts") from None
    finally:
        late.cancel()
    attempt = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore("/".join(["luthier", *attempt]), store)


def _no_answer(rank: int, address: str, seconds: float) -> None:
    """End a process whose connection was accepted and never answered: that of torch has no limit."""
    print(f"error: rank {rank}: what listens at {address} is not rank 0; no answer in {seconds:.0f} s", file=sys.stderr)
    sys.stderr.flush()
    os._exit(InputError.exit_code)


def _agreed(store: Any, rank: int, world: int, facts: dict[str, str], seconds: float) -> list[str]:
    """The host of each rank. InputError, on every rank, where one does not come or has other facts than rank 0."""
    store.set(f"here/{rank}", to_json(facts))
    if rank == 0:
        problem = _difference(store, world, facts, seconds)
        store.set("agreed", problem or "yes")
    try:
        store.wait(["agreed"], timedelta(seconds=2 * seconds))
        problem = store.get("agreed").decode()
    except RuntimeError:
        problem = f"rank {rank} on {facts['host']} waited {2 * seconds:.0f} s for rank 0, which did not come"
    if problem != "yes":
        if rank and not problem.endswith("did not come"):
            raise Followed(problem, InputError.exit_code)
        raise InputError(problem, fix="the same Luthier, libraries, recipe and base on every host")
    return [json.loads(store.get(f"here/{each}"))["host"] for each in range(world)]


def _difference(store: Any, world: int, facts: Mapping[str, str], seconds: float) -> str:
    until = time.monotonic() + seconds
    missing = set(range(1, world))
    while missing and time.monotonic() < until:
        missing = {each for each in missing if not store.check([f"here/{each}"])}
        time.sleep(0.05 if missing else 0)
    if missing:
        named = ", ".join(map(str, sorted(missing)[:8]))
        return f"{len(missing)} of {world} processes did not come within {seconds:.0f} s: rank {named}"
    for each in range(1, world):
        theirs = json.loads(store.get(f"here/{each}"))
        for key, value in facts.items():
            if key != "host" and theirs.get(key) != value:
                other = f"rank {each} on {theirs['host']} has {theirs.get(key)}"
                return f"{key}: rank 0 on {facts['host']} has {value}, {other}"
    return ""


class _Watch(threading.Thread):
    """Tells the others that this process lives, and ends it where one of them is silent for too long."""

    def __init__(self, store: Any, ranks: Ranks, seconds: float) -> None:
        super().__init__(daemon=True, name="luthier-ranks")
        self.store, self.ranks, self.seconds = store, ranks, seconds
        self.others = range(1, ranks.world) if ranks.leads else range(1)
        self.ended = threading.Event()
        self.heard = now = time.monotonic()
        self.seen = {rank: ("", now) for rank in self.others}
        store.set_timeout(timedelta(seconds=seconds))
        self.start()
        threading.Thread(target=self._guard, daemon=True, name="luthier-store").start()

    def _guard(self) -> None:
        """End the process where the store does not answer: a cable that is cut lets a call to it wait for minutes."""
        while not self.ended.wait(BEAT):
            if time.monotonic() - self.heard > self.seconds + 5 * BEAT:
                why = f"{self.ranks.name(0)} gave no sign of life for {self.seconds:.0f} s"
                print(f"error: {self.ranks.name(self.ranks.rank)}: {why}\n  fix: {AGAIN}", file=sys.stderr, flush=True)
                os._exit(1)

    def run(self) -> None:
        beat = 0
        while not self.ended.wait(BEAT):
            beat += 1
            try:
                self.store.set(f"beat/{self.ranks.rank}", str(beat))
                self._look()
                if (over := self._said()) is not None:
                    self._note(f"left/{self.ranks.rank}")
                self.heard = time.monotonic()
            except RuntimeError:
                over = f"{self.ranks.name(0)} cannot be reached any more", 1
            silent = [rank for rank, (_, at) in self.seen.items() if time.monotonic() - at > self.seconds]
            if over is None and silent:
                over = f"{self._names(silent)} gave no sign of life for {self.seconds:.0f} s", 1
                self.give_up(*over)
            if self.ended.is_set():
                return
            if over is not None:
                # The main thread may wait in a transfer that nothing ends. Where one fails at once, its error says why.
                if not self.ranks.leads:
                    self.let_leader_speak()
                    os._exit(over[1])
                if not self.ended.wait(5 * BEAT):
                    print(f"error: {over[0]}\n  fix: {AGAIN}", file=sys.stderr, flush=True)
                    self._note("spoke")
                    os._exit(over[1])
                return

    def _look(self) -> None:
        for rank in self.others:
            key = f"beat/{rank}"
            beat = self.store.get(key).decode() if self.store.check([key]) else ""
            if beat != self.seen[rank][0]:
                self.seen[rank] = beat, time.monotonic()

    def _said(self) -> tuple[str, int] | None:
        """Why the run is over, and the exit code, where a rank has said so."""
        if not self.store.check(["over"]):
            return None
        why, code = json.loads(self.store.get("over"))
        return why, code

    def _names(self, ranks: Sequence[int]) -> str:
        return ", ".join(self.ranks.name(rank) for rank in ranks[:4])

    def over(self) -> tuple[str, int]:
        """After a transfer failed, why and with which exit code: what a rank said, or which ranks are silent."""
        began = time.monotonic()
        until = began + min(self.seconds, 8 * BEAT)
        try:
            while time.monotonic() < until:
                if (said := self._said()) is not None:
                    return said
                time.sleep(BEAT / 4)
        except RuntimeError:
            return f"{self.ranks.name(0)} cannot be reached any more", 1
        # The last sign of a rank that is gone may be seen shortly after its connection broke.
        silent = [rank for rank in self.others if self.seen[rank][1] < began + 2 * BEAT]
        return (f"{self._names(silent)} is gone" if silent else ""), 1

    def give_up(self, why: str, code: int) -> None:
        """Tell the others why the run is over, and by which exit code they end. The first to say so counts."""
        with suppress(RuntimeError):
            if self._said() is None:
                self.store.set("over", to_json([why, code]))
        if self.ranks.leads:
            atexit.register(self._note, "spoke")

    def _note(self, key: str) -> None:
        with suppress(RuntimeError):
            self.store.set(key, "")

    def let_leader_speak(self) -> None:
        """Wait a moment for the leader's last words: a launcher that sees a follower end kills the leader at once."""
        until = time.monotonic() + 5 * BEAT
        with suppress(RuntimeError):
            while time.monotonic() < until and not self.store.check(["spoke"]):
                time.sleep(BEAT / 20)

    def let_others_leave(self) -> None:
        """As leader, wait a moment until the others know that the run is over: the store may end with this process."""
        until = time.monotonic() + 4 * BEAT
        with suppress(RuntimeError):
            while self.ranks.leads and time.monotonic() < until:
                if all(self.store.check([f"left/{rank}"]) for rank in self.others):
                    return
                time.sleep(BEAT / 20)

    def stop(self) -> None:
        """No more signs of life."""
        self.ended.set()
        self.join(timeout=2 * BEAT)
        if time.monotonic() - self.heard < 5 * BEAT:  # a store that is gone may let us wait
            self._note(f"left/{self.ranks.rank}")
