"""A CUDA device that is not there, for a build of PyTorch without CUDA: branches for GPUs run and are counted.

The autograd engine of such a build refuses a tensor on CUDA ("PyTorch is not linked with support for cuda devices"), so
``FakeTensorMode`` cannot serve. Here a tensor is a wrapper: C++ sees the meta device, and so autograd runs it; Python is told
``device == cuda:0`` and ``is_cuda``, and so our code takes its way for a GPU. Nothing is computed: a number that is read
off such a tensor is a constant, 0.01 or 1. A Triton kernel is not run but recorded, with all that its compilation depends on.

What is watched (``Watch``): operations that mix devices, reads for which the host waits, copies between host and device and
whether they are pinned and asynchronous, live bytes and their peak, launches, bytes touched, and what one stream does to
memory of another without an event between them (``fake_streams.py``). CUDA graphs are recorded and
replayed (``fake_graphs.py``). Three things differ from a GPU:
inference mode is ``no_grad`` (a wrapper cannot live in it), an operation that a GPU runs as several kernels is one launch, and
``scaled_dot_product_attention`` is its plain form, which keeps probabilities where a GPU's kernels keep none.

Importing it changes torch for the whole process, so only child processes do.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils

from fake_graphs import GRAPHS, Graph
from fake_streams import STREAMS, Event, Stream
from fake_watch import FREE, ROUNDED_TO, WATCH, Watch, site


class _Unchanged(contextlib.ContextDecorator):
    """A block, or a function, that computes as what is around it."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


torch.inference_mode = lambda mode=True: (
    torch.no_grad() if mode is True else _Unchanged()
)  # before anything is decorated with it

CUDA = torch.device("cuda", 0)
NAME = "a GPU that is not there"
PINNED: set[StorageWeakRef] = set()  # pinned memory: an address would be taken over by the next who gets it
WAITING = {"nonzero", "masked_select", "_unique2", "bincount"}  # the size of the result is read
SEQUENCES = (list, tuple)  # a union of types is made anew at each look, of which there are millions
aten = torch.ops.aten


class OnCuda(torch.Tensor):
    """A tensor of the device that is not there, around a meta tensor."""

    meta: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type, meta: torch.Tensor, requires_grad: bool = False) -> "OnCuda":
        layout = {"strides": meta.stride(), "storage_offset": meta.storage_offset(), "dtype": meta.dtype, "layout": meta.layout}
        made = torch.Tensor._make_wrapper_subclass(
            cls, meta.size(), **layout, device=torch.device("meta"), requires_grad=requires_grad
        )
        made.meta = meta
        WATCH.allocated(meta)
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({tuple(self.shape)}, {self.dtype})"

    def untyped_storage(self) -> Any:
        return self.meta.untyped_storage()

    def data_ptr(self) -> int:
        return self.untyped_storage()._cdata * ROUNDED_TO + self.meta.storage_offset() * self.element_size()

    def record_stream(self, stream: Any) -> None:
        assert isinstance(stream, Stream)

    def tolist(self) -> Any:
        WATCH.waited("tolist")
        return torch.ones(self.shape, dtype=torch.float64 if self.dtype.is_floating_point else torch.int64).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        read = _tensors((args, kwargs))
        answer = _with_the_host(func, name, read, args, kwargs)
        if answer is not None:
            return answer[0]
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "meta"
        out = func(*_mapped(_unwrapped, args), **_mapped(_unwrapped, kwargs))
        WATCH.launched(name, read, _tensors(out))
        if name not in FREE:
            written = _tensors(kwargs["out"] if "out" in kwargs else args[:1]) if func._schema.is_mutable else []
            for tensors, writes in ((read, False), (written, True)):
                WATCH.touched_by([x for x in tensors if isinstance(x, OnCuda)], writes)
        if not func._schema.is_mutable:
            return _mapped(_wrapped, out)
        back = {id(x.meta): x for x in read if isinstance(x, OnCuda)}
        return _mapped(lambda x: back[id(x)] if id(x) in back else _wrapped(x), out)


def _mapped(change: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Every tensor of nested lists, tuples and dictionaries changed; a pytree's own walk takes most of the time."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, SEQUENCES):
        return type(tree)([_mapped(change, x) for x in tree])
    return {key: _mapped(change, x) for key, x in tree.items()} if isinstance(tree, dict) else tree


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[torch.Tensor]) -> None:
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif isinstance(tree, SEQUENCES):
        for x in tree:
            _gather(x, found)
    elif isinstance(tree, dict):
        for x in tree.values():
            _gather(x, found)


def _unwrapped(x: torch.Tensor) -> torch.Tensor:
    if isinstance(x, OnCuda):
        return x.meta
    return x.to("meta") if x.dim() and x.device.type != "meta" else x


def _wrapped(x: torch.Tensor) -> torch.Tensor:
    return x if isinstance(x, OnCuda) or x.device.type != "meta" else OnCuda(x)


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and str(device).partition(":")[0] == "cuda"


def _with_the_host(func: Any, name: str, read: list[torch.Tensor], args: Any, kwargs: Any) -> tuple[Any] | None:
    """The answer to an operation for which the host waits, or that moves data; None for all others.

    Raises:
        RuntimeError: tensors of two devices, as CUDA says it.
    """
    here = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if func is aten._local_scalar_dense.default and here is not None:
        WATCH.waited("item")
        return (True if here.dtype == torch.bool else 0.01 if here.dtype.is_floating_point else 1,)
    if func is aten.equal.default:
        WATCH.waited("equal")
        return (True,)
    if name in WAITING:
        assert here is not None
        WATCH.waited(name)
        WATCH.launched(name, read, ())
        shape = [kwargs.get("minlength") or args[-1]] if name == "bincount" else [here.numel(), here.dim()]
        return (_wrapped(torch.empty(shape, dtype=torch.int64, device="meta")),)
    if name.startswith(("index", "_index")) and len(args) > 1 and isinstance(args[1], list | tuple):
        return _indexed(name, args)
    target = kwargs.get("device")
    if name == "_to_copy" and target is not None and torch.device(target).type == "cpu":
        assert here is not None
        GRAPHS.refuse_wait()
        WATCH.downloads.append((here.nbytes, site()))
        return (torch.ones(here.shape, dtype=kwargs.get("dtype") or here.dtype),)
    if name == "copy_":
        if not isinstance(args[0], OnCuda):
            if not (_pinned(args[0]) and len(args) > 2 and args[2]):
                GRAPHS.refuse_wait()
            WATCH.downloads.append((args[1].nbytes, site()))
            WATCH.touched_by([args[1]], False)
            return (args[0] if _pinned(args[0]) else args[0].fill_(1),)  # pinned memory is written later
        if not isinstance(args[1], OnCuda) and args[1].dim():
            _uploaded(args[1], bool(len(args) > 2 and args[2]))
            WATCH.touched_by([args[0]], True)
            return (args[0],)
    if any(not isinstance(x, OnCuda) and x.dim() and x.device.type != "meta" for x in read):
        shapes = [(tuple(x.shape), str(x.device)) for x in read]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {shapes} at {site()}")
    return None


def _indexed(name: str, args: Any) -> tuple[Any] | None:
    """An index by truth values, whose number is read, or by a tensor of the host, which is uploaded; None for others."""
    index = [x for x in args[1] if isinstance(x, torch.Tensor)]
    for x in index:
        if not isinstance(x, OnCuda):
            _uploaded(x, False)
    if not any(x.dtype == torch.bool for x in index):
        return None
    WATCH.waited(f"{name} by truth values")
    if name != "index":
        return (args[0],)
    chosen = [
        torch.zeros(x.shape[:1], dtype=torch.int64, device="meta") if x.dtype == torch.bool else _unwrapped(x) for x in index
    ]
    return (_wrapped(aten.index.Tensor(_unwrapped(args[0]), chosen)),)


def _copied(x: torch.Tensor) -> torch.Tensor:
    """Memory of its own; one that stands for more than it holds (``weightless``) goes on to."""
    held = x.untyped_storage().nbytes() // x.element_size()
    if x.numel() <= held:
        return x.clone()
    return torch.as_strided(x, (held,), (1,), 0).clone().as_strided(x.shape, x.stride(), x.storage_offset())


def _pin(x: torch.Tensor) -> torch.Tensor:
    PINNED.add(StorageWeakRef(x.untyped_storage()))
    return x


def _pinned(x: torch.Tensor) -> bool:
    """Whether ``x`` or what it is a part of was made pinned."""
    return StorageWeakRef(x.untyped_storage()) in PINNED


def _uploaded(x: torch.Tensor, asynchronous: bool) -> None:
    if x.nbytes:
        if not (asynchronous and _pinned(x)):
            GRAPHS.refuse_wait()
        if GRAPHS.current is not None:
            GRAPHS.findings.append(f"{x.nbytes} bytes of the host are copied in a recording {site()}")
        WATCH.uploads.append((x.nbytes, _pinned(x), asynchronous, site()))


class _Mode(TorchFunctionMode):
    """Makes and moves tensors: what would reach a CUDA runtime that is not there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cuda):
            return _moved(func, args, kwargs)
        if name == "pin_memory":
            return _pin(_copied(args[0]))
        if kwargs.get("generator") is not None and any(isinstance(x, OnCuda) for x in _tensors(args)):
            generator = kwargs.pop("generator")
            if not isinstance(generator, _Generator):
                raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' at {site()}")
        if _is_cuda(kwargs.get("device")):
            return _made(func, name, args, kwargs)
        pinned = kwargs.pop("pin_memory", False)
        made = func(*args, **kwargs)
        return _pin(made) if pinned else made


def _moved(func: Any, args: Any, kwargs: Any) -> Any:
    """``Tensor.to`` and ``Tensor.cuda``."""
    x = args[0]
    given = [*args[1:], *(kwargs[key] for key in ("device", "dtype", "other") if kwargs.get(key) is not None)]
    devices = [d for d in given if isinstance(d, str | torch.device)]
    to_cuda = func is torch.Tensor.cuda or any(map(_is_cuda, devices)) or any(isinstance(d, OnCuda) for d in given)
    if not to_cuda:
        return func(*args, **kwargs)
    dtype = next((d if isinstance(d, torch.dtype) else d.dtype for d in given if isinstance(d, torch.dtype | OnCuda)), x.dtype)
    if isinstance(x, OnCuda):
        if dtype == x.dtype:
            return x.clone() if kwargs.get("copy") else x
        return func(x, dtype)
    if x.device.type != "meta":
        _uploaded(x, bool(kwargs.get("non_blocking")))
    made = OnCuda(torch.empty_like(x.detach(), dtype=dtype, device="meta"))
    return torch.nn.Parameter(made, x.requires_grad) if isinstance(x, torch.nn.Parameter) else made


def _made(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """A new tensor on the device."""
    for key in ("pin_memory", "generator"):
        kwargs.pop(key, None)
    grad = kwargs.pop("requires_grad", False)
    if name in ("tensor", "as_tensor"):
        host = func(*args, **{**kwargs, "device": "cpu"})
        _uploaded(host, False)
        return OnCuda(torch.empty_like(host, device="meta"))
    out = _mapped(_wrapped, func(*args, **{**kwargs, "device": "meta"}))
    WATCH.launched(name, (), _tensors(out))
    return out.requires_grad_() if grad else out


class _Generator(torch.Generator):
    device = property(lambda self: CUDA)  # type: ignore[assignment]

    def manual_seed(self, seed: int) -> "_Generator":
        return self


class _Generators:
    """In the place of ``torch.Generator``."""

    real = torch.Generator

    def __new__(cls, device: Any = "cpu") -> Any:
        return _Generator() if _is_cuda(device) else cls.real(device)


def _record(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
    """In the place of a launch by Triton: what its compilation depends on, the limits of a grid, and what it writes."""
    from triton_writes import written

    names = [p.name for p in self.params]
    given = dict(zip(names, args, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
    kind = f"{self.__module__.rpartition('.')[2]}.{self.__name__}"
    signature: dict[str, list[Any]] = {}
    for p in self.params:
        value = given[p.name]
        if p.is_constexpr:
            signature[p.name] = ["constexpr", value]
        elif isinstance(value, torch.Tensor):
            assert isinstance(value, OnCuda), f"{kind}: {p.name} cannot be accessed from Triton (cpu tensor?)"
            aligned = value.meta.storage_offset() * value.element_size() % 16 == 0
            signature[p.name] = ["pointer", str(value.dtype).removeprefix("torch."), aligned]
        elif isinstance(value, int) and not isinstance(value, bool):
            # What the launcher specialises for: ones, multiples of 16, and the width.
            signature[p.name] = ["int", 1 if value == 1 else 16 if value % 16 == 0 else 0, abs(value) >= 2**31]
        else:
            assert isinstance(value, float), (kind, p.name, value)
            signature[p.name] = ["float"]
    programs: tuple[int, ...] = grid(given) if callable(grid) else tuple(grid)  # type: ignore[assignment]
    assert programs[0] < 2**31 and all(n < 2**16 for n in programs[1:]) and min(programs) > 0, (kind, programs)
    options = {key: value for key, value in kwargs.items() if key not in names}
    half = WATCH.capability < (8, 0)
    launch = {"kernel": f"{self.__module__}:{self.__name__}", "signature": signature, "options": options, "without_bf16": half}
    WATCH.kernels.setdefault(f"{launch}", launch | {"from": site()})
    tensors = {id(x): x for x in given.values() if isinstance(x, torch.Tensor)}  # one that stands for two is read once
    WATCH.launched(f"triton {kind}", tensors.values(), ())
    WATCH.touched_by(list(tensors.values()), False)
    WATCH.touched_by([given[name] for name in written(self, given) if isinstance(given[name], torch.Tensor)], True)


def _answers(capability: tuple[int, int], memory: int) -> dict[str, Callable[..., Any]]:
    """What ``torch.cuda`` says."""
    facts = {"total_memory": memory, "name": NAME, "multi_processor_count": 100}
    facts |= {"major": capability[0], "minor": capability[1]}
    properties = type("Properties", (), facts)
    return {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0),
        "get_device_capability": lambda *_: capability,
        "get_device_name": lambda *_: NAME,
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (memory - WATCH.live(), memory),
        "memory_allocated": lambda *_: WATCH.live(),
        "memory_reserved": lambda *_: WATCH.live(),
        "max_memory_allocated": lambda *_: WATCH.peak,
        "max_memory_reserved": lambda *_: WATCH.peak,
        "synchronize": lambda *_: WATCH.waited("synchronize"),
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: setattr(WATCH, "peak", WATCH.live()),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "manual_seed_all": lambda _: None,
        "is_current_stream_capturing": lambda: GRAPHS.current is not None,
        "get_sync_debug_mode": lambda: 2 if GRAPHS.is_waiting_refused else 0,
        "set_sync_debug_mode": GRAPHS.set_mode,
        "CUDAGraph": Graph,
        "graph": GRAPHS.capture,
        "_lazy_init": lambda: None,
        "Event": Event,
        "Stream": Stream,
        "stream": STREAMS.on,
        "current_stream": lambda *_: STREAMS.current,
    }


@contextlib.contextmanager
def cuda(capability: tuple[int, int] = (9, 0), memory: int = 80 << 30) -> Iterator[Watch]:
    """Within the block there is a CUDA device."""
    from triton.runtime.jit import JITFunction

    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run_engine(*args: Any, **kwargs: Any) -> Any:
        with _Mode():  # the engine's thread has no modes of its own
            return engine(*args, **kwargs)

    WATCH.capability = capability
    changes: list[tuple[Any, str, Any]] = [
        (JITFunction, "run", _record),
        (torch.autograd, "_engine_run_backward", run_engine),
        (torch, "Generator", _Generators),
        (torch.accelerator, "empty_host_cache", lambda: None),
        (_foreach_utils, "_foreach_supported_types", [torch.Tensor, OnCuda]),
        (_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["cuda", "meta"]),
        *((torch.cuda, name, answer) for name, answer in _answers(capability, memory).items()),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in changes]
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        with _Mode():
            yield WATCH
    finally:
        for place, name, value in reversed(before):
            setattr(place, name, value)


def weightless(shape: Iterable[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the host that takes the memory of one element, whatever its size, to be uploaded."""
    size = tuple(shape)
    return torch.zeros(1, dtype=dtype).as_strided(size, [0] * len(size))
