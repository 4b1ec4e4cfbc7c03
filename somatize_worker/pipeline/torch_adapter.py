"""``torch.nn.Module`` objects as filters.

torch itself is imported only when a module is at hand, so this file loads anywhere.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard

import numpy as np

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.tensors import (
    has_gradient,
    has_tensor,
    home,
    is_array,
    length,
    take,
    to_arrays,
    to_state,
    to_tensors,
)

_DEFAULT_LR: Final = 1e-3


def is_module(obj: Any) -> bool:
    """Whether an object is a ``torch.nn.Module``; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "nn") and isinstance(obj, torch.nn.Module)


def is_torch_filter(obj: Any) -> TypeGuard[TorchFilter]:
    """Whether a filter came from a module."""
    return isinstance(obj, TorchFilter)


class TorchFilter:
    """A filter around a module, which itself is never changed.

    Arrays in, arrays out: inputs become tensors of the parameters' dtype on the filter's device (integers stay
    integers), outputs become arrays. ``forward`` runs in evaluation mode without gradients. A tensor that comes in
    goes out as a tensor; inside a composite the step hands tensors to the next torch step, and the last one gives
    arrays. While it is trained (see :meth:`train`), or gets a tensor with gradients, gradients flow through it.

    The filter is trainable if there is a loss, given here or as the module's own ``loss_fn(prediction, y)``. Its state
    is the module's ``state_dict`` with arrays in place of tensors.

    Args:
        module: the module, with the weights that training starts from or inference uses.
        loss_fn: ``loss_fn(prediction, y)`` returns a scalar tensor; default: the module's ``loss_fn``.
        optimizer: makes an optimizer from an iterable of parameters, such as
            ``lambda params: torch.optim.SGD(params, lr=0.1)``; default: the module's ``optimizer``, else Adam.
        epochs: how often ``fit`` sees all data.
        batch_size: rows for each step of the optimizer.
        lr: learning rate of the default optimizer, 1e-3 if not given.
        shuffle: whether each epoch has its own order of rows.
        seed: for that order, so that training can be repeated.
        device: ``"cpu"``, ``"cuda:0"``, ...; default: CUDA where the worker has it.

    Raises:
        InvalidPipeline: ``optimizer`` is already bound to parameters, or there is nothing to minimise with it.
    """

    _stream_mode = "fixed"
    _cacheable: bool | None = None
    _differentiable = True

    def __init__(
        self,
        module: Any,
        *,
        loss_fn: Callable[[Any, Any], Any] | None = None,
        optimizer: Callable[[Iterable[Any]], Any] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        lr: float | None = None,
        shuffle: bool = True,
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        if optimizer is not None and not callable(optimizer):
            raise InvalidPipeline(
                "the optimizer is bound to parameters of this process; give a function that makes one, such as "
                "optimizer=lambda params: torch.optim.Adam(params, lr=1e-3)",
            )
        if isinstance(loss_fn, type):
            raise InvalidPipeline(f"loss_fn is the class {loss_fn.__name__}; give an instance: {loss_fn.__name__}()")
        self.module = module
        self._loss_fn = loss_fn
        if optimizer is not None and self.loss_fn is None:
            raise InvalidPipeline(f"{self.name} has an optimizer but no loss: give loss_fn=, or the module a loss_fn")
        self._optimizer = optimizer
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.shuffle, self.seed, self.device = shuffle, seed, device
        self.passes_tensors: bool | None = None
        self.trained_together = False
        self._kind = "stateless" if self.loss_fn is None else "trainable"
        self._live: Any = None
        self._live_state: Any = None
        self._owns_module = False

    @property
    def name(self) -> str:
        """The module's class name."""
        return type(self.module).__name__

    @property
    def loss_fn(self) -> Callable[[Any, Any], Any] | None:
        """The loss given, or the module's own; None if there is neither."""
        return self._loss_fn or _own_loss(self.module)

    def __repr__(self) -> str:
        return self.name

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_live": None, "_live_state": None}
        if any(
            tensor.device.type != "cpu" for tensor in self.module.state_dict().values() if hasattr(tensor, "device")
        ):
            state["module"] = copy.deepcopy(self.module).cpu()  # so that it loads where there is no such device
        return {**state, "_owns_module": True}

    def within_composite(self, *, last: bool, trained: bool) -> TorchFilter:
        """A copy for use in a composite: it hands on tensors unless it is the last, and is trained with the others."""
        twin = copy.copy(self)
        twin._owns_module = self._owns_module
        twin.passes_tensors = not last
        twin.trained_together = trained
        twin._kind = "trainable" if trained else self._kind
        return twin

    # --- inference -------------------------------------------------------------------------------------------

    def forward(self, x: Any, state: Any = None) -> Any:
        """The module's output for ``x``.

        Args:
            x: array or tensor ``(n, ...)``, or a list, tuple or mapping of them.
            state: what ``fit`` returned; None uses the module's own weights.
        """
        import torch

        module = self._ready(state)
        learning = torch.is_grad_enabled() and (module.training or has_gradient(x))
        with torch.set_grad_enabled(learning):
            out = module(to_tensors(x, *home(module)))
        hands_on = has_tensor(x) if self.passes_tensors is None else self.passes_tensors
        return out if hands_on or learning else to_arrays(out)

    def _ready(self, state: Any) -> Any:
        """The module on its device with the state's weights; kept for the next call with the same state."""
        if self._live is None or (state is not None and self._live is self.module):
            # What came out of a pickle belongs to the filter: no second copy of the weights as long as they stay.
            unchanged = self._owns_module and state is None
            self._live = self._on_device(self.module if unchanged else copy.deepcopy(self.module)).eval()
        if state is not self._live_state:
            self._load(self._live, self.module.state_dict() if state is None else state)
            self._live_state = state
        return self._live

    def _on_device(self, module: Any) -> Any:
        import torch

        if self.device is not None:
            return module.to(self.device)
        devices = {parameter.device for parameter in module.parameters()}
        if len(devices) > 1:  # its author has spread it over devices
            return module
        return module.to("cuda") if torch.cuda.is_available() else module

    # --- training --------------------------------------------------------------------------------------------

    def fit(self, x: Any, y: Any = None) -> dict[str, Any]:
        """Train a copy of the module.

        Args:
            x: inputs ``(n, ...)``.
            y: targets ``(n, ...)``: floating point targets take the parameters' dtype, integers become int64.

        Returns:
            The ``state_dict``, name to array.

        Raises:
            InvalidPipeline: no loss, or no ``y``.
        """
        return fit_together([self], x, y)[0]

    @property
    def fit_together(self) -> Callable[..., list[dict[str, Any]]] | None:
        """:func:`fit_together` for the last step of a composite that is trained as one, else None."""
        return fit_together if self.trained_together else None

    def train(self, mode: bool = True) -> TorchFilter:
        """Switch the live module between training and evaluation, as ``torch.nn.Module.train`` does."""
        self._ready(self._live_state).train(mode)
        return self

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """The live module's parameters: those that ``forward`` uses and whose gradients it fills."""
        return iter(self._ready(self._live_state).named_parameters())

    def state_dict(self) -> dict[str, Any]:
        """The live module's state, name to array."""
        return {name: to_state(value) for name, value in self._ready(self._live_state).state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the live module another state: name to array or tensor."""
        self._load(self._ready(self._live_state), state)

    def optimizer(self) -> Any:
        """A new optimizer for the live module's parameters."""
        return self.optimizer_for(self._ready(self._live_state), self)

    def optimizer_for(self, module: Any, leader: TorchFilter) -> Any:
        """The optimizer for a copy of the module: the one given, the module's own, or what ``leader`` would use."""
        import torch

        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        own = getattr(module, "optimizer", None)
        if self._optimizer is not None:
            return self._optimizer(parameters)
        if isinstance(own, torch.optim.Optimizer):  # copied with the module: it holds the copy's parameters
            return own
        if callable(own):
            return own(parameters) if _takes_argument(own) else own()
        if self.lr is None and leader._optimizer is not None:
            return leader._optimizer(parameters)
        return torch.optim.Adam(parameters, lr=self.lr or leader.lr or _DEFAULT_LR)

    def _load(self, module: Any, state: Mapping[str, Any]) -> None:
        import torch

        tensors = {key: torch.from_numpy(np.array(value)) if is_array(value) else value for key, value in state.items()}
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise InvalidPipeline(f"the state does not fit {self.name}: {error}") from error


def fit_together(filters: Sequence[Any], x: Any, y: Any = None) -> list[dict[str, Any]]:
    """Train torch filters that follow one another as one module, gradients flowing through all of them.

    The last one's loss, epochs and batch size count. Each has its own optimizer, as it was given or else like the
    last one's.

    Returns:
        The state of each, in order.

    Raises:
        InvalidPipeline: the last one has no loss, a filter is not from a module, or ``y`` is missing.
    """
    import torch

    last = filters[-1]
    strangers = [repr(step) for step in filters if not is_torch_filter(step)]
    if strangers:
        raise InvalidPipeline(f"only torch modules can be trained together; not {', '.join(strangers)}")
    if last.loss_fn is None:
        raise InvalidPipeline(f"{last.name} cannot be trained: give torch_step(module, loss_fn=...)")
    if y is None:
        raise InvalidPipeline(f"{last.name} is trained with a loss against y: pass y to fit")
    modules = [step._on_device(copy.deepcopy(step.module)).train() for step in filters]
    optimizers = [
        step.optimizer_for(module, last)
        for step, module in zip(filters, modules, strict=True)
        if any(parameter.requires_grad for parameter in module.parameters())
    ]
    loss_fn = last._loss_fn or modules[-1].loss_fn  # the copy's own, which may use the copy's parameters
    rows = torch.Generator().manual_seed(last.seed)
    for _ in range(last.epochs):
        for batch in _batches(length(x), last.batch_size, rows if last.shuffle else None):
            value = take(x, batch)
            for module in modules:
                value = module(to_tensors(value, *home(module)))
            loss = loss_fn(value, _target(take(y, batch), value, modules[-1]))
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    return [{name: to_state(value) for name, value in module.state_dict().items()} for module in modules]


def _own_loss(module: Any) -> Callable[[Any, Any], Any] | None:
    own = getattr(module, "loss_fn", None)
    return own if callable(own) else None


def _batches(count: int, size: int, generator: Any) -> Iterator[Any]:
    import torch

    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    yield from (part.numpy() for part in order.split(size))


def _target(y: Any, prediction: Any, module: Any) -> Any:
    """Targets as the loss wants them: ``(n,)`` against a prediction ``(n, 1)`` would broadcast to ``(n, n)``."""
    import torch

    target = to_tensors(y, *home(module))
    if not isinstance(target, torch.Tensor) or not isinstance(prediction, torch.Tensor):
        return target
    if target.is_floating_point():
        if prediction.ndim == target.ndim + 1 and prediction.shape[-1] == 1:
            return target.unsqueeze(-1)
        return target
    return target if target.dtype == torch.bool else target.long()


def _takes_argument(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True
