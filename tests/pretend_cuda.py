"""Tensors that say they are on a CUDA device while a CPU tensor (or one on `meta`) does the work, and that complain
where a GPU would.

Inside `pretend_cuda()` a model can be moved with `.to("cuda:0")`, and every operation on it is checked as a CUDA build
checks it:

- operands on different devices are refused. Torch's own exceptions: a 0-dimensional CPU tensor may stand beside CUDA
ones, indices of
  `x[index]` may be on the CPU, and copies go anywhere;
- what makes the host wait for the device (`.item()`, `bool()`, `nonzero`, a blocking copy between the two) is counted;
- the fused attention operations have the contracts of torch's CUDA sources (`flash_api.cpp`, `attention.cu` and
`kernel_forward.h` of
  torch 2.11), and are then computed by the formula, with all outputs of their schemas.

What it cannot show: the numbers of a real kernel, and speed.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten

HALVES = (torch.bfloat16, torch.float16)
_LSE_BLOCK = 32
"""The memory-efficient kernel pads its log-sum-exp to a multiple of this many queries, with +inf."""

_WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default,
    aten.unique_consecutive.default, aten._unique2.default, aten.unique_dim.default, aten.is_nonzero.default,
}  # fmt: skip
"""Operations whose result's shape or value the host needs."""
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_LAZY = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.detach.default, aten.alias.default,
}  # fmt: skip
"""Operations that launch nothing; views, which the schema tells, launch nothing either."""


class DeviceError(RuntimeError):
    """What a CUDA build would refuse."""


def _is_view(func: Any) -> bool:
    return any(ret.alias_info is not None and not ret.alias_info.is_write for ret in func._schema.returns)


@dataclass
class Counts:
    """What was seen: kernel launches, waits of the host by cause, bytes."""

    launches: int = 0
    waits: list[str] = field(default_factory=list)
    copies: int = 0
    """Copies between host and device, blocking or not."""
    calls: list[str] = field(default_factory=list)
    """Names of the fused attention operations."""
    live: int = 0
    peak: int = 0
    largest: int = 0
    """Bytes of the largest single allocation."""
    _holders: dict[int, list[int]] = field(default_factory=dict, repr=False)

    def reset(self) -> None:
        """Begin anew; what is alive stays counted."""
        self.launches, self.copies, self.largest, self.peak = 0, 0, 0, self.live
        self.waits, self.calls = [], []

    def hold(self, tensor: Pretended) -> None:
        """Count the memory behind a tensor until the last one on it is gone."""
        storage = tensor.held.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._holders:
            self._holders[key] = [0, size]
            self.live += size
            self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        self._holders[key][0] += 1
        weakref.finalize(tensor, self._drop, key)

    def _drop(self, key: int) -> None:
        holders = self._holders[key]
        holders[0] -= 1
        if holders[0] == 0:
            self.live -= holders[1]
            del self._holders[key]


class Pretended(Tensor):
    """A tensor on a pretended device; `held` does the work."""

    held: Tensor
    counts: Counts
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device, counts: Counts) -> Pretended:
        self = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device, requires_grad=False,
        )  # fmt: skip
        self.held, self.counts = held, counts
        counts.hold(self)
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_flatten((args, kwargs or {}))[0] if isinstance(x, Pretended)]
        return _run(tensors[0].counts, "cpu", func, args, kwargs or {})

    # What Python's bindings do under a guard of the device, for which a build without CUDA has none.

    def __getitem__(self, index: Any) -> Tensor:
        taken, rest = _viewed(self, index)
        return aten.index(taken, rest) if rest else taken

    def __setitem__(self, index: Any, value: Any) -> None:
        taken, rest = _viewed(self, index)
        if not isinstance(value, Tensor):
            value = torch.scalar_tensor(value, dtype=self.dtype, device=self.device)
        if rest:
            aten.index_put_(taken, rest, value)
        else:
            taken.copy_(value)

    def __invert__(self) -> Tensor:
        return aten.bitwise_not(self)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def item(self) -> Any:
        """The one value, for which the host waits."""
        return aten._local_scalar_dense(self.reshape(()))

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        """As `Tensor.copy_`."""
        return aten.copy_(self, source, non_blocking)

    def index_copy_(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """As `Tensor.index_copy_`."""
        return _run(self.counts, "cpu", aten.index_copy_.default, (self, dim, index, source), {})

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """As `Tensor.contiguous`."""
        return self if self.held.is_contiguous(memory_format=memory_format) else self.clone(memory_format=memory_format)

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        """As `Tensor.new_tensor`."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def cpu(self) -> Tensor:
        """As `Tensor.cpu`."""
        return self.to("cpu")

    def nonzero(self) -> Tensor:
        """As `Tensor.nonzero`."""
        return aten.nonzero(self)

    def tolist(self) -> Any:
        """The values, for which the host waits once."""
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        """An address that tells storages apart, as a real one does."""
        return self.held.untyped_storage()._cdata * 64 + self.held.storage_offset() * self.held.element_size()

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            made = Pretended(self.held.clone(), self.device, self.counts)
            memo[id(self)] = torch.nn.Parameter(made, False) if isinstance(self, torch.nn.Parameter) else made
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.device}, {self.held!r})"


def _viewed(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """What is left of `x[index]` after all that is a view, and the indices that are not."""
    parts = list(index) if isinstance(index, tuple) else [index]
    parts = [torch.tensor(part) if isinstance(part, list) else part for part in parts]
    used = sum(
        part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else part is not None and part is not ...
        for part in parts
    )
    at = next((n for n, part in enumerate(parts) if part is ...), len(parts))
    parts[at : at + 1] = [slice(None)] * (x.ndim - used)
    dim, rest = 0, []
    for part in parts:
        if part is None:
            x = x.unsqueeze(dim)
        elif isinstance(part, int):
            x = x.select(dim, part)
            continue
        elif isinstance(part, slice):
            x = aten.slice(x, dim, part.start, part.stop, part.step or 1)
        else:
            rest += [None] * (dim - len(rest)) + [part]
            dim += part.ndim - 1 if part.dtype == torch.bool else 0
        dim += 1
    return x, rest


def _tensor_on(make: Callable[..., Tensor], data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """`torch.tensor`, the values made on the CPU and copied; without a device, to that of `with torch.device(...)`."""
    if device is None:
        contexts = (mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext))
        device = next((context.device for context in contexts), "cpu")
    made = make(data, device="cpu", **options)
    return made if torch.device(device).type == "cpu" else made.to(device)


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, where "cuda" is the first device: to find the current one takes a build with CUDA."""
    numbered = lambda y: _on(y) if isinstance(y, torch.device) or (isinstance(y, str) and y == "cuda") else y  # noqa: E731
    return torch._C.TensorBase.to(x, *map(numbered, args), **{name: numbered(y) for name, y in kwargs.items()})


def held(x: Tensor) -> Tensor:
    """The values of a pretended tensor, looked at without going through the device."""
    return x.held if isinstance(x, Pretended) else x


class _Mode(TorchDispatchMode):
    """Sees the operations that make tensors on a pretended device."""

    def __init__(self, counts: Counts, where: str) -> None:
        super().__init__()
        self.counts, self.where = counts, where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(self.counts, self.where, func, args, kwargs or {})


@contextmanager
def pretend_cuda(*, meta: bool = False) -> Iterator[Counts]:
    """Let CUDA devices be usable inside the context.

    Args:
        meta: hold shapes only, so that nothing is computed and any size is free; asking for a value is an error then.
    """
    torch._C._ensureCUDADeviceGuardSet()
    counts = Counts()
    with ExitStack() as stack:
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(mock.patch.object(Tensor, "to", _to))
        stack.enter_context(mock.patch.object(torch, "tensor", partial(_tensor_on, torch.tensor)))
        stack.enter_context(mock.patch.object(torch.cuda, "_lazy_init", lambda: None))
        # Else `Module.to` would put the pretended tensor's outside into the old parameter.
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Mode(counts, "meta" if meta else "cpu"))
        yield counts


def _on(device: Any) -> torch.device:
    """A device with its number, as torch fills it in."""
    device = torch.device(device)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def _run(counts: Counts, where: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: checked, counted, done on what is held, and its results wrapped."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    mine = [x for x in tensors if isinstance(x, Pretended)]
    asked = kwargs.get("device")
    target = _on(asked) if asked is not None else None
    if not mine and (target is None or target.type != "cuda"):
        return func(*args, **kwargs)
    _check_devices(func, args, tensors, mine)
    device = target or mine[0].device
    if isinstance(kwargs.get("generator"), torch.Generator) and device.type == "cuda":
        raise DeviceError("Expected a 'cuda' device type for generator but found 'cpu'")
    _count(counts, func, args, kwargs, mine, device)
    if func in _ATTENTION:
        results = _ATTENTION[func](*args, **kwargs)
        counts.calls.append(func.__name__)
    else:
        own = (
            torch.device(where) if not mine or any(x.held.device.type == "meta" for x in mine) else mine[0].held.device
        )
        results = _computed(func, args, kwargs, own, device)
    known = {id(x.held): x for x in mine}
    return tree_map_only(Tensor, lambda x: _wrapped(x, known, device, counts), results)


def _computed(func: Any, args: Any, kwargs: dict[str, Any], own: torch.device, device: torch.device) -> Any:
    """The operation on what is held; a copy to the CPU of what has no values is an error."""
    inner = dict(kwargs)
    if "device" in inner:
        inner["device"] = own if device.type == "cuda" else device
    for name in ("pin_memory", "non_blocking"):
        if inner.get(name):
            inner[name] = False
    plain_args, plain_kwargs = tree_map_only(Pretended, lambda x: x.held, (args, inner))
    if own.type == "meta":
        if func in _WAITS or device.type == "cpu":
            raise DeviceError(f"{func}: there are no values to look at")
        plain_args, plain_kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (plain_args, plain_kwargs))
    return func(*plain_args, **plain_kwargs)


def _wrapped(x: Tensor, known: dict[int, Pretended], device: torch.device, counts: Counts) -> Tensor:
    if device.type != "cuda":
        return x
    if id(x) in known:
        old = known[id(x)]
        if old.shape != x.shape or old.stride() != x.stride():
            raise DeviceError("an operation in place changed its tensor's shape, which the pretence does not follow")
        return old
    return Pretended(x, device, counts)


def _check_devices(func: Any, args: Any, tensors: Sequence[Tensor], mine: Sequence[Pretended]) -> None:
    """Refuse operands on different devices."""
    if func in _COPIES:
        return
    devices = {x.device for x in mine}
    if len(devices) > 1:
        raise DeviceError(f"{func}: expected all tensors on one device, got {sorted(map(str, devices))}")
    allowed: Sequence[Any] = args[1] if func in _INDEXED else ()
    for x in tensors:
        strange = not isinstance(x, Pretended) and x.ndim > 0
        if strange and not any(x is index for index in allowed):
            raise DeviceError(
                f"{func}: expected all tensors on {mine[0].device if mine else 'cuda'}, got one on {x.device}: "
                f"{tuple(x.shape)}"
            )


def _count(
    counts: Counts, func: Any, args: Any, kwargs: dict[str, Any], mine: Sequence[Pretended], device: torch.device
) -> None:
    name = str(func).removeprefix("aten.")
    if func in _COPIES:
        sides = (
            (args[0].device.type, args[1].device.type)
            if func is aten.copy_.default
            else (args[0].device.type, device.type)
        )
        if len(set(sides)) > 1 and args[0].numel():
            counts.copies += 1
            blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if not blocking:
                counts.waits.append(
                    f"{name} {sides[0]}->{sides[1]}"
                    if func is not aten.copy_.default
                    else f"{name} {sides[1]}->{sides[0]}"
                )
    elif func in _WAITS:
        counts.waits.append(name)
    elif func in _INDEXED:
        for index in args[1]:
            if index is not None and not isinstance(index, Pretended):
                counts.copies += 1
                counts.waits.append(f"{name} with an index on the CPU")
            if index is not None and index.dtype == torch.bool:
                counts.waits.append(f"{name} with a mask for an index")
    if func not in _LAZY and not _is_view(func):
        counts.launches += 1


# --- the fused attention operations -----------------------------------------------------------------------------------


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise DeviceError(message)


EXACT: list[torch.dtype] = []
"""Types that the fused operations take for once beside the half ones, so that a test can compare tightly."""


def _common_checks(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> None:
    _check(dropout == 0.0, "the pretence has no dropout")
    _check(query.ndim == key.ndim == value.ndim == 4, "expected 4 dimensions")
    _check(query.dtype == key.dtype == value.dtype, "query, key and value must have the same dtype")
    _check(query.shape[0] == key.shape[0] == value.shape[0] > 0, "batch sizes differ")
    _check(key.shape[2] == value.shape[2], "Key and Value must have the same sequence length")
    _check(query.shape[3] == key.shape[3], "head sizes differ")
    _check(all(x.stride(-1) == 1 for x in (query, key, value)), "Input tensor must have contiguous last dimension")
    _check(
        query.shape[2] > 0 and key.shape[2] > 0,
        "no queries or no keys: the kernels return an empty or infinite log-sum-exp",
    )


def _aligned(x: Tensor, dims: Sequence[int]) -> bool:
    """Whether rows begin at multiples of 16 bytes, which the kernels load at once."""
    return all(x.shape[d] <= 1 or x.stride(d) * x.element_size() % 16 == 0 for d in dims) and (
        x.storage_offset() * x.element_size() % 16 == 0
    )


def _scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return query.to(wide) @ key.to(wide).mT * scale


def _soft(scores: Tensor, value: Tensor, dtype: torch.dtype, like: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(like)
    if like.device.type != "meta":
        out.copy_(scores.softmax(-1) @ value.to(scores.dtype))
    return out, scores.logsumexp(-1).to(torch.promote_types(dtype, torch.float32))


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple:  # fmt: skip
    """`mha_fwd`: shared key heads, causal from the bottom right corner."""
    _check(query.dtype in (*HALVES, *EXACT), "FlashAttention only support fp16 and bf16 data type")
    _common_checks(query, key, value, dropout_p)
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    _check(dim % 8 == 0 and dim <= 256, "head_size must be a multiple of 8 and at most 256")
    _check(
        key.shape[1] == value.shape[1] and heads % key.shape[1] == 0,
        "Number of heads in key/value must divide number of heads in query",
    )
    _check(all(_aligned(x, (0, 1, 2)) for x in (query, key, value)), "rows not at multiples of 16 bytes")
    q, k, v = held(query), held(key), held(value)
    lse_shape = (batch, heads, queries)
    layout = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)
    if q.device.type == "meta":
        out, lse = layout, q.new_empty(lse_shape, dtype=torch.float32)
    else:
        groups = heads // key.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = _scores(q, k, scale)
        if is_causal and queries > 1:
            hidden = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
            scores = scores.masked_fill(hidden, -math.inf)
        out, lse = _soft(scores, v, q.dtype, layout)
    state = torch.empty(2, dtype=torch.uint64, device=q.device)
    nothing = torch.empty((), dtype=torch.uint64, device=q.device)
    return out, lse, None, None, queries, keys, state, nothing, q.new_empty(0)


def _check_bias(query: Tensor, key: Tensor, bias: Tensor) -> None:
    _check(bias.dtype == query.dtype, "invalid dtype for bias - should match query's dtype")
    _check(bias.shape == (*query.shape[:3], key.shape[2]), f"attn_bias: wrong shape {tuple(bias.shape)}")
    _check(bias.stride(3) == 1, "attn_bias: wrong alignment (last dimension must be contiguous)")
    align = 16 // bias.element_size()
    for d, name in enumerate("BHM"):
        _check(
            bias.shape[d] <= 1 or bias.stride(d) % align == 0,
            f"attn_bias is not correctly aligned (stride{name}): {bias.stride(d)}",
        )
    _check(bias.storage_offset() % align == 0, "attn_bias_ptr is not correctly aligned")


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple:
    """`_efficient_attention_forward`: equal heads, a bias in full shape, causal from the top left corner."""
    _check(query.dtype in (*HALVES, torch.float32, *EXACT), "expected float32 or a half type")
    _common_checks(query, key, value, dropout_p)
    _check(query.shape[1] == key.shape[1] == value.shape[1], "expected as many heads in key and value as in query")
    _check(query.shape[0] <= 65535 and query.shape[1] <= 65535, "too large a grid")
    for x, name in ((query, "query"), (key, "key"), (value, "value")):
        _check(_aligned(x, (1, 2)), f"{name} is not correctly aligned: {x.stride()}")
        _check(all(x.stride(d) < 2**31 for d in (1, 2)), "stride overflows")
        _check(x.shape[2] * x.stride(2) < 2**31, "32-bit offset into the keys overflows")
    if attn_bias is not None:
        _check_bias(query, key, attn_bias)
    q, k, v = held(query), held(key), held(value)
    batch, heads, queries, _ = q.shape
    layout = torch.empty(batch, queries, heads, v.shape[3], dtype=q.dtype, device=q.device).transpose(1, 2)
    padded = -(-queries // _LSE_BLOCK) * _LSE_BLOCK if compute_log_sumexp else 0
    lse = torch.full(
        (batch, heads, padded), math.inf, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device
    )
    if q.device.type != "meta":
        scores = _scores(q, k, scale)
        if is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
        if attn_bias is not None:
            scores = scores + held(attn_bias).to(scores.dtype)
        out, real = _soft(scores, v, q.dtype, layout)
        # A row that sees nothing comes out as zero, with a log-sum-exp of 0.
        empty = real == -math.inf
        layout = out.masked_fill_(empty[..., None], 0)
        if padded:
            lse[..., :queries] = real.masked_fill(empty, 0)
    seed = torch.empty((), dtype=torch.long, device=q.device)
    return layout, lse, seed, seed.clone()


_ATTENTION: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
}


@contextmanager
def exact(dtype: torch.dtype) -> Iterator[None]:
    """Let the fused operations, and the choice of them, take a precise type, so that a comparison can be tight."""
    from probe.attention import kernels

    EXACT.append(dtype)
    try:
        with mock.patch.object(kernels, "FUSED_TYPES", (*kernels.FUSED_TYPES, dtype)):
            yield
    finally:
        EXACT.remove(dtype)


def moved(model: torch.nn.Module, device: str = "cuda:0", dtype: torch.dtype | None = None) -> Any:
    """A copy of the model on a pretended device."""
    return copy.deepcopy(model).to(device, dtype) if dtype else copy.deepcopy(model).to(device)
