"""The connection between processes that were launched together: jobs from the first to the others, and sums of tensors.

One process, rank 0, **leads**: it makes the run as if it were alone, and is the only one that prints and writes. The others
**follow**: each waits for a job, does its part, and waits again. So there is one place that decides, nothing to keep in step,
and a run directory has one writer, whatever the number of processes (``pipeline/follow.py``).

Two ways to each other. Jobs (JSON) and orders go over gloo, without a limit of time: a follower may wait for hours while
prompts are tried. Tensors go over NCCL between GPUs and over gloo between CPUs; whoever does not answer there for
``ANSWER`` is taken for dead. So whoever computes for a while waits for the others over gloo first (``wait_for_all``), and what
is timed is the exchange alone.

**Nobody outlives the others.** A process that fails writes the reason into the store before it ends, and the first reason is
the one that all name; one that is killed closes its connections. Either way the next exchange over gloo fails at once, and the
error names who is gone and why. NCCL hears of no death: an exchange that one of them left ends with ``ANSWER``, by PyTorch's
own watchdog, or with the launcher. A process that never comes is named after ``JOIN``.

Refused: every process makes the whole run in step with the others (each stage would need two forms, one of which writes);
``DistributedDataParallel`` (it divides by the number of processes, where the sum over supervised tokens is wanted);
``torch.distributed.checkpoint`` and objects by pickle.
"""

import json
import logging
import socket
import struct
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore

from tunesmith import hardware
from tunesmith.errors import RunError
from tunesmith.launch.meeting import GRACE, JOIN, meet
from tunesmith.launch.variables import Launch, launch

logger = logging.getLogger(__name__)

ANSWER = timedelta(minutes=10)
WAIT = timedelta(days=30)  # for the next job
ITEM = struct.Struct("<qq")  # number, bytes that follow
REASON = 4000  # characters of an error that are handed on
AGAIN = "start it again; a run goes on from its newest checkpoint, with any number of processes"
UNREACHED = (
    "can the machines reach each other at any port? GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface that "
    "is to be taken, such as eth0"
)
FAILED = "failed"  # key of the first reason

Work = dist.Work  # under way
Json = dict[str, Any]
# Its name until torch 2.12.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Order(NamedTuple):
    """What all processes do next within a job."""

    kind: int
    number: int


class Part:
    """Some processes of a group, in the order of their ranks; this one is among them.

    Args:
        members: their ranks in the group.
        group: of torch.

    Attributes:
        rank, size: this process among them.
    """

    def __init__(self, group: "Group", members: Sequence[int], made: dist.ProcessGroup):
        self.rank, self.size = list(members).index(group.rank), len(members)
        self._group, self._made = group, made

    def exchange(self, to: Tensor) -> Tensor:
        """Give each process its part of a tensor, by the first dimension, and get the parts that are for this one.

        Raises:
            RunError: one of them is gone.
        """
        given = to.contiguous()
        got = torch.empty_like(given)
        with self._group.failing_together("exchanging heads"):
            dist.all_to_all_single(_bytes_of(got), _bytes_of(given), group=self._made)
        return got


class Group:
    """This process among those that were launched together.

    Args:
        launched: as which it was launched.
        join: how long all of them have to come.

    Attributes:
        device: on which tensors are exchanged.

    Raises:
        RunError: not all came, with the ranks that are missing.
    """

    def __init__(self, launched: Launch, join: timedelta = JOIN):
        self.rank, self.size = launched.rank, launched.size
        has_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", launched.local_rank) if has_gpu else torch.device("cpu")
        if has_gpu and launched.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"{launched}: local rank {launched.local_rank}, but {torch.cuda.device_count()} GPUs are seen here",
                "torchrun --nproc-per-node gpu",
            )
        if has_gpu:
            torch.cuda.set_device(self.device)
        self._made_here, self._has_failed = not dist.is_initialized(), False
        self._store, self._names, self._keeps_store = meet(launched, join, is_first=self._made_here)
        self._store.set_timeout(ANSWER)  # by which gloo and NCCL find each other, when they are first asked
        if self._made_here:
            backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
            store = PrefixStore("tensors", self._store)
            with self.failing_together("meeting the others", hint=UNREACHED):
                dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=ANSWER)
        self._parts: dict[int, Part] = {}
        with self.failing_together("meeting the others", hint=UNREACHED):
            orders = dist.new_group(backend="gloo", timeout=ANSWER)
        assert isinstance(orders, dist.ProcessGroup)
        # Not before all are connected: whoever dies on the way would be waited for as long.
        dist.distributed_c10d._set_pg_timeout(WAIT, orders)  # pyright: ignore[reportPrivateUsage]
        self._orders = orders

    @property
    def leads(self) -> bool:
        """Whether it is the one that decides, prints and writes."""
        return self.rank == 0

    def send(self, job: Json) -> None:
        """Give a job to the others.

        Raises:
            RunError: one of them is gone.
        """
        content = json.dumps(job).encode()
        with self.failing_together("handing out a job"):
            dist.broadcast(torch.tensor([len(content)]), 0, group=self._orders)
            dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, group=self._orders)

    def receive(self) -> Json:
        """The next job, in one that follows.

        Raises:
            RunError: the one that leads is gone.
        """
        with self.failing_together("waiting for a job"):
            length = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(length, 0, group=self._orders)
            content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0, group=self._orders)
        return json.loads(content.numpy().tobytes())

    def order(self, order: Order | None = None) -> Order:
        """Say what all do next, in the one that leads; hear it, in the others.

        Raises:
            RunError: one of them is gone.
        """
        said = torch.tensor(order if order is not None else (0, 0), dtype=torch.int64)
        with self.failing_together("waiting for an order"):
            dist.broadcast(said, 0, group=self._orders)
        return Order(*said.tolist())

    def wait_for_all(self, lacks: bool = False) -> list[int]:
        """Wait until all processes are here, without a limit of time; one that has died is noticed at once.

        Args:
            lacks: whether this one has not what the next exchange needs.

        Returns:
            Ranks of those that said so.

        Raises:
            RunError: one of them is gone.
        """
        marks = torch.zeros(self.size, dtype=torch.int64)
        marks[self.rank] = lacks
        with self.failing_together("waiting for the others"):
            dist.all_reduce(marks, group=self._orders)
        return marks.nonzero()[:, 0].tolist()

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Write the leader's tensors into those of the others, in place.

        Raises:
            RunError: one of them is gone.
        """
        flat = torch.cat([_bytes_of(tensor.detach()).to(self.device) for tensor in tensors])
        with self.failing_together("sending weights"):
            dist.broadcast(flat, 0)
        if self.leads:
            return
        start = 0
        for tensor in tensors:
            part = flat[start : start + tensor.nbytes]
            tensor.detach().copy_(part.clone().view(tensor.dtype).view(tensor.shape))
            start += tensor.nbytes

    def sum_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in the one that leads; where it lies is where it is added up.

        Raises:
            RunError: one of them is gone.
        """
        with self.failing_together("adding up"):
            dist.reduce(tensor, 0)
        return tensor

    def add_up(self, tensor: Tensor) -> None:
        """Leave the sum over all processes in each of them, in place.

        Raises:
            RunError: one of them is gone.
        """
        there = tensor.to(self.device)
        with self.failing_together("adding up"):
            dist.all_reduce(there)
        tensor.copy_(there)

    def hand_round(self, own: dict[int, bytes]) -> dict[int, bytes]:
        """What each process has by number, all of it in each of them.

        Raises:
            RunError: one of them is gone.
        """
        content = b"".join(ITEM.pack(number, len(value)) + value for number, value in own.items())
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(content)
        parts: dict[int, bytes] = {}
        with self.failing_together("handing results round"):
            dist.all_reduce(sizes, group=self._orders)
            run = torch.zeros(int(sizes.sum()), dtype=torch.uint8)
            start = int(sizes[: self.rank].sum())
            run[start : start + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else 0
            dist.all_reduce(run, group=self._orders)  # zeros but where one process wrote
        whole, place = run.numpy().tobytes(), 0
        while place < len(whole):
            number, length = ITEM.unpack_from(whole, place)
            place += ITEM.size + length
            parts[number] = whole[place - length : place]
        return parts

    def post(self, tensor: Tensor) -> dist.Work:
        """Begin to send a CPU tensor to the one that leads; it must stay as it is until the work is waited for.

        Raises:
            RunError: the one that leads is gone.
        """
        with self.failing_together("sending gradients"):
            work = dist.isend(tensor, 0)
        assert work is not None
        return work

    def gather(self, share: Tensor, whole: Tensor) -> dist.Work:
        """Begin to put the shares of all processes together, by rank, in each of them.

        Args:
            whole: as large as all shares; neither may be touched until the work is waited for.

        Raises:
            RunError: one of them is gone.
        """
        with self.failing_together("putting a layer together"):
            work = _all_gather(whole, share, async_op=True)
        assert work is not None
        return work

    def settle(self, posted: Sequence[dist.Work]) -> None:
        """Wait until all that was begun is done.

        Raises:
            RunError: one of them is gone.
        """
        with self.failing_together("waiting for the others"):
            for work in posted:
                work.wait()

    def take(self, like: Tensor, rank: int) -> None:
        """Fill a CPU tensor with what a process posted.

        Raises:
            RunError: it is gone.
        """
        with self.failing_together(f"waiting for rank {rank}", rank):
            dist.recv(like, rank)

    def parts(self, size: int) -> Part:
        """Neighbours of so many ranks, and the ones that this process is among. The first time all processes must ask at once.

        Raises:
            RunError: the processes cannot be divided so, or one of them is gone.
        """
        if size in self._parts:
            return self._parts[size]
        if self.size % size:
            raise RunError(
                f"train.sequence_parallel: {size}, but {self.size} processes were launched", f"launch a multiple of {size}"
            )
        found: Part | None = None
        with self.failing_together("finding the neighbours"):
            for first in range(0, self.size, size):
                members = list(range(first, first + size))
                made = dist.new_group(members, timeout=ANSWER)
                if self.rank in members:
                    assert isinstance(made, dist.ProcessGroup)
                    found = Part(self, members, made)
        assert found is not None
        self._parts[size] = found
        return found

    def fail(self, reason: str) -> None:
        """Tell the others why this process ends, and hang up, so that whoever waits for it looks for the reason.

        Whoever keeps the store leaves them time to read it; and whoever ends because of another leaves that one the time to end
        first, since a launcher takes the first for the cause, and ends the rest.
        """
        told, is_first = json.dumps([self.rank, reason[:REASON]]), True
        try:
            is_first = self._store.compare_set(FAILED, "", told).decode() == told
        except RuntimeError as error:  # the store went with the process that kept it
            logger.debug(f"the others are not told: {error}")
        self._hang_up()
        if self._keeps_store or not is_first:
            time.sleep(GRACE)

    def close(self) -> None:
        """Leave, with all others. What is under way is given up."""
        if self._made_here and not self._has_failed and dist.is_initialized():
            dist.destroy_process_group()

    def _hang_up(self) -> None:
        """Close what goes over gloo. NCCL would wait for what was begun, and gives it up as the process ends."""
        if self._has_failed or not dist.is_initialized():
            return
        self._has_failed = True
        orders = self._orders
        self._parts.clear()
        del self._orders  # a connection is closed with the last reference
        dist.destroy_process_group(None if self._made_here and self.device.type == "cpu" else orders)

    @contextmanager
    def failing_together(self, doing: str, rank: int | None = None, hint: str = AGAIN) -> Iterator[None]:
        """Turn a broken connection into an error that names who is gone."""
        try:
            yield
        except (RuntimeError, ValueError) as error:  # dist.DistError is a RuntimeError
            if isinstance(error, torch.OutOfMemoryError):
                raise
            traceback.clear_frames(error.__traceback__)  # which hold the connection open
            raise self._lost(doing, rank, error, hint) from error

    def _lost(self, doing: str, rank: int | None, error: Exception, hint: str) -> RunError:
        if (first := self._reason()) is not None:
            failed, reason = first
            message, _, own_hint = reason.partition("\nhint: ")
            is_told = message.startswith(f"rank {failed} of ")  # by one that lost another
            return RunError(message if is_told else f"{self._who(failed)} failed, so all end: {message}", own_hint or AGAIN)
        dead = [each for each in self._names if each != self.rank and self._is_dead(each)]
        who = "another process" if rank is None and not dead else self._who(rank if rank is not None else dead[0])
        line = next(iter(str(error).strip().splitlines()), "")
        return RunError(f"{self._who(self.rank)}: {who} is gone ({doing}: {line:.200})", hint)

    def _reason(self) -> tuple[int, str] | None:
        """The first process that failed, and why; None where none could say."""
        try:
            for _ in range(10):
                if self._store.check([FAILED]):
                    rank, reason = json.loads(self._store.get(FAILED))
                    return int(rank), str(reason)
                time.sleep(0.05)  # a connection breaks faster than a word arrives
        except RuntimeError as error:
            logger.debug(f"no store to ask: {error}")
        return None

    def _is_dead(self, rank: int) -> bool:
        """Whether a process is known to have ended: of other machines nothing is known."""
        host, _, process = self._names[rank].rpartition(", process ")
        return host == socket.gethostname() and hardware.started_at(int(process)) is None

    def _who(self, rank: int) -> str:
        return f"rank {rank} of {self.size} ({self._names[rank]})"


_group: Group | None = None


def group() -> Group | None:
    """The connection of this process to those that it was launched with, made at the first call; None where it is alone.

    Raises:
        RunError: see ``Group`` and ``launch``.
    """
    global _group
    if _group is None and (launched := launch()) is not None:
        _group = Group(launched)
    return _group


def leave() -> None:
    """Close the connection of this process, where there is one."""
    global _group
    if _group is not None:
        _group.close()
    _group = None


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
