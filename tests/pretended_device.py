"""An accelerator that is not there: tensors that say they lie on it, are computed on the CPU, and mix with no others.

What a product forgets to move is found on any machine: an operation on tensors of both devices is refused, as is NumPy
on one of the pretended device. Operations of few kinds take both, as on CUDA: copies, indices, and numbers without an
axis. The checks below run in a process of their own, since a device cannot be taken back:

    python tests/pretended_device.py probe
    python tests/pretended_device.py families
    python tests/pretended_device.py fits
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Backend(_DummyBackendModule):
    """What PyTorch asks of a device's generators: there are none but the CPU's."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        pass


_setup_privateuseone_for_python_backend("pretended", backend_module=_Backend())
DEVICE = torch.device("pretended:0")
TAKES_BOTH = {"aten.copy_.default", "aten._to_copy.default"}
BY_INDEX = {"aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default", "aten._index_put_impl_.default"}
SHORT = [{"prompt": "The capital", "answer": "Paris"}]
"""Some tiny models read eight tokens at most."""
GIVES_NO_TENSOR = {"aten._local_scalar_dense.default", "aten.equal.default"}


class DeviceSlip(RuntimeError):
    """An operation on tensors of both devices."""


class Pretended(torch.Tensor):
    """A tensor of the pretended device; `inner` is where it really is."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Pretended":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, requires_grad=False, **layout)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise DeviceSlip("NumPy was asked for a tensor of the device")

    __array__ = numpy


class Pretending(TorchDispatchMode):
    """While it lasts, tensors can be made on the pretended device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _index(index: Any) -> Any:
    """Lists as tensors: PyTorch would make them on the device without asking anyone."""
    parts = index if isinstance(index, tuple) else (index,)
    made = tuple(_make(part) if isinstance(part, list) else part for part in parts)
    return made if isinstance(index, tuple) else made[0]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, in the parts that reach a device."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Pretending():
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    name = str(func)
    tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    if there:
        _refuse_mixture(name, args, tensors)
    wrapper_of: dict[int, Pretended] = {id(tensor.inner): tensor for tensor in there}
    inner_args, inner_kwargs = tree_map(
        lambda part: part.inner if isinstance(part, Pretended) else part, (args, kwargs)
    )
    on_device = bool(there)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == DEVICE.type
        inner_kwargs["device"] = torch.device("cpu") if on_device else kwargs["device"]
    if name in BY_INDEX or name == "aten.copy_.default":
        on_device = isinstance(args[0], Pretended)
    if inner_kwargs.get("pin_memory"):
        inner_kwargs["pin_memory"] = False
    if name == "aten.histc.default":  # of whole numbers it counts on accelerators alone
        inner_args = (inner_args[0].float(), *inner_args[1:])
    result = func(*inner_args, **inner_kwargs)
    if not on_device or name in GIVES_NO_TENSOR:
        return result

    def wrapped(part: Any) -> Any:
        if not isinstance(part, torch.Tensor):
            return part
        return wrapper_of[id(part)] if id(part) in wrapper_of else Pretended(part)

    return tree_map(wrapped, result)


def _refuse_mixture(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    here = [tensor for tensor in tensors if not isinstance(tensor, Pretended) and tensor.ndim > 0]
    if not here or name in TAKES_BOTH:
        return
    if name in BY_INDEX and isinstance(args[0], Pretended):
        put = args[2] if "put" in name else None
        if put is None or isinstance(put, Pretended) or put.ndim == 0:  # indices may lie on the CPU
            return
    shapes = [(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]
    raise DeviceSlip(f"{name} on tensors of both devices: {shapes}")


_make = torch.tensor


def _tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """`torch.tensor`, which otherwise fills its memory on the device by itself."""
    made = _make(data, **options)
    return made.to(device) if device is not None and torch.device(device).type == DEVICE.type else made


_attend = torch.nn.functional.scaled_dot_product_attention


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **options: Any) -> torch.Tensor:
    """Its choice between kernels goes by the device's name."""
    parts = [query, key, value, *([] if attn_mask is None else [attn_mask])]
    there = [isinstance(part, Pretended) for part in parts]
    if any(there) and not all(there):
        raise DeviceSlip("attention on tensors of both devices")
    if not any(there):
        return _attend(query, key, value, attn_mask, *args, **options)
    mask = None if attn_mask is None else attn_mask.inner
    return Pretended(_attend(query.inner, key.inner, value.inner, mask, *args, **options))


@contextmanager
def pretending(memory: int) -> Iterator[None]:
    """Models are opened on the pretended device, with so much memory."""
    import layerscope.model.causal_lm as opening
    from layerscope.model.placement import Placement

    before = opening.place
    opening.place = lambda *_: Placement(DEVICE, torch.float32, memory)
    torch.tensor, torch.nn.functional.scaled_dot_product_attention = _tensor, _attention
    try:
        with Pretending():
            yield
    finally:
        opening.place = before
        torch.tensor, torch.nn.functional.scaled_dot_product_attention = _make, _attend


def _compare(here: Any, there: Any, what: str) -> None:
    assert there.record.identity.ok, what
    for name in ("entropy_bits", "kl_to_final_bits", "cos_to_final", "p_top1", "js_divergence_bits"):
        a, b = here.rows[name], there.rows[name]
        assert a.null_count() == b.null_count(), (what, name)
        apart = (a - b).abs().max()
        assert apart is None or apart < 1e-3 * max(1.0, a.abs().max()), (what, name, apart)


def check_probe() -> None:
    """The bundled model, its weights on the device and brought tile by tile, with everything that a probe measures."""
    import layerscope

    options: dict[str, Any] = {"suite": "berlin", "positions": "all", "second_forward": "always"}
    here = layerscope.probe(device="cpu", **options, control="shuffled-weights")
    for memory in (4 << 30, 96 << 20):
        with pretending(memory):
            there = layerscope.probe(**options, control="shuffled-weights")
        _compare(here, there, f"{memory:,} bytes")
    with pretending(4 << 30):
        there = layerscope.probe(suite="capitals", limit=1, protocol="published", judge="whole")
    _compare(layerscope.probe(suite="capitals", limit=1, protocol="published", judge="whole", device="cpu"), there, "")


def check_families(*names: str) -> None:
    """Every tiny model, or those named: softcaps, experts, learned positions, projections before the head."""
    import layerscope
    from tiny_models import TINY

    for name, tiny in TINY.items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = tiny.build(Path(folder))
            options: dict[str, Any] = {"suite": SHORT, "positions": "all"}
            here = layerscope.probe(path, device="cpu", **options)
            for memory in (4 << 30, 2 * path.stat().st_size + (96 << 20)):
                with pretending(memory):
                    there = layerscope.probe(path, **options)
                _compare(here, there, name)


def check_fits() -> None:
    """A tuned, a prism and a Jacobian lens of the bundled model."""
    from fit_texts import corpus_for, write_text
    from layerscope.bundled import BUNDLED
    from layerscope.fitting.jacobian import JacobianSettings, fit_jacobian
    from layerscope.fitting.prism import PrismSettings, fit_prism
    from layerscope.fitting.tuned import TunedSettings, fit_tuned
    from layerscope.model.causal_lm import CausalLM

    with tempfile.TemporaryDirectory() as name, pretending(4 << 30):
        folder = Path(name)
        model = CausalLM.open(BUNDLED)
        corpus = corpus_for(model, write_text(folder / "text.txt"))
        tuned = fit_tuned(model, corpus, folder / "tuned", TunedSettings(steps=4, batch=128))
        assert all(layer.tuned_bits <= layer.logit_bits for layer in tuned.record.tuned.layers)
        fit_prism(model, corpus, folder / "prism", PrismSettings())
        settings = JacobianSettings(prompts=6, first_position=8, probe_rows=8)
        there = fit_jacobian(model, corpus, folder / "there", settings)
        here = fit_jacobian(CausalLM.open(BUNDLED, device="cpu"), corpus, folder / "here", settings)
        for name, matrix in here.tensors.items():
            assert torch.allclose(there.tensors[name], matrix, rtol=1e-3, atol=1e-3 * float(matrix.abs().max())), name


CHECKS = {"probe": check_probe, "families": check_families, "fits": check_fits}

if __name__ == "__main__":
    torch.inference_mode = lambda mode=True: torch.no_grad()  # its tensors have no views of this kind
    CHECKS[sys.argv[1]](*sys.argv[2:])
