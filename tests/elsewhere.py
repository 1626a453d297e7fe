"""A device that is not there, with real values: tensors that say they are on "meta" and are kept on the CPU.

torch's own FakeTensorMode stops where a value is read, and, without a CUDA device, at a backward pass. Here both go on, so
whole stages run. What a GPU refuses is refused: two devices in one operation, NumPy, a generator of the CPU; and what MPS
lacks: float64, some operators. What makes a GPU wait is noted: values read, copies to and from the CPU, sizes that depend on
values. The label is "meta" because autograd knows that device everywhere, and no GPU has to be there for it.
"""

import contextlib

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten, DEVICE = torch.ops.aten, torch.device("meta")
COPY, INDEX = {aten._to_copy, aten.copy_}, {aten.index, aten.index_put, aten.index_put_}
WAITING = {aten._local_scalar_dense, aten.equal, aten.is_nonzero,                                     # a value is read
           aten.nonzero, aten.masked_select, aten._unique2, aten.bincount, aten.repeat_interleave}    # a size, from values
NOT_ON_MPS = {aten.kthvalue, aten._linalg_eigh}          # in torch releases that we allow: pytorch/pytorch#77764, #151874
waits = []


class Elsewhere(torch.Tensor):
    """A tensor on DEVICE whose values are `inner`, a tensor on the CPU."""

    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, inner):
        return cls._make_wrapper_subclass(cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype,
                                          device=DEVICE)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return dispatch(operator, args, kwargs or {})

    def __reduce_ex__(self, protocol):  # what torch.save writes
        return self.inner.detach().__reduce_ex__(protocol)

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, spec):
        return format(self.item(), spec) if spec else repr(self)


def dispatch(operator, args, options):
    """Does an operation on the CPU; its results are Elsewhere if its tensors are, or if its `device` says so."""
    packet, tensors = operator.overloadpacket, [t for t in tree_leaves((args, options)) if isinstance(t, torch.Tensor)]
    far = [t for t in tensors if isinstance(t, Elsewhere)]
    near = [t for t in tensors if not isinstance(t, Elsewhere)]
    device = options.get("device")
    to_far = bool(far) if device is None else torch.device(device) == DEVICE
    index = [t for t in args[1] if t is not None] if far and packet in INDEX else []
    if ((packet in COPY and bool(near) == to_far) or (packet in WAITING and far)
            or any(t.dtype == torch.bool or not isinstance(t, Elsewhere) for t in index)):
        waits.append(str(packet))
    if far and packet not in COPY | INDEX and any(t.ndim for t in near):
        raise RuntimeError(f"{operator}: expected all tensors to be on the same device.")
    if far and packet in NOT_ON_MPS:
        raise NotImplementedError(f"{operator} is not implemented for MPS.")
    if to_far and options.get("generator"):
        raise RuntimeError(f"{operator}: expected a generator of this device, found one of the CPU.")
    if device is not None:
        options = {**options, "device": "cpu"}
    result = operator(*tree_map_only(Elsewhere, lambda t: t.inner, args),
                      **tree_map_only(Elsewhere, lambda t: t.inner, options))
    itself = {id(t.inner): t for t in far} | {id(t): t for t in near}             # of operations in place

    def placed(t):
        if to_far and t.dtype == torch.float64:
            raise TypeError(f"{operator}: MPS has no float64.")
        return itself.get(id(t), Elsewhere(t) if to_far else t)

    return tree_map_only(torch.Tensor, placed, result)


class Operators(TorchDispatchMode):
    """Sees what has no Elsewhere among its arguments: what is made on DEVICE, and what goes there."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return dispatch(operator, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Sees what operators do not show: torch.tensor([…], device=DEVICE), which is none, is made on the CPU and sent there;
    quantile, whose ranks are float64 except on MPS (pytorch/pytorch#198345), is done on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return function(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        if function is torch.Tensor.quantile and isinstance(args[0], Elsewhere):
            return Elsewhere(function(args[0].inner, *args[1:], **kwargs))
        return function(*args, **kwargs)


@contextlib.contextmanager
def another_device(patch):
    """Within it there is DEVICE, for which AdamW has a fused kernel as for any GPU. Yields the list of what made it wait."""
    fused = [*optimizer._get_fused_kernels_supported_devices(), DEVICE.type]
    patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: fused)
    waits.clear()
    with Operators(), Functions():
        yield waits
