"""Modules called again with the arguments that they got in the model's own run; what is changed for that is put back.

An argument may hold a value a position: rotary tables, masks, numbers of positions. They are those of a whole prompt, whatever
part of it is run: some rotary tables depend on how long a prompt is, so a shorter one would be run by another model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LENGTHS = (8, 7)
"""Lengths of the prompts by which arguments that hold a value a position are told from others."""

MASK = "attention_mask"
"""The argument that may be absent in a short prompt and present in a long one (a sliding window): [..., query, key]."""

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """The arguments a module's forward was called with but for the hidden states, to call it again on others.

    Attributes:
        args: By position; the hidden states' place holds None.
        kwargs: By name, without the hidden states.
        dims: Of each argument that holds a value a position, by its path, the dimensions that are positions.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dims: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def without_hidden(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call":
        """A call as it was made, without the hidden states: a replay never reads them, and they are the largest of all."""
        rest = {name: value for name, value in kwargs.items() if args or name != "hidden_states"}
        return cls((None, *args[1:]) if args else (), rest)

    def replay(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Call ``module`` with these arguments and ``hidden`` [batch, pos, d_model] as its input."""
        args, kwargs = self._for_each(len(hidden))
        out = module(hidden, *args[1:], **kwargs) if args else module(hidden_states=hidden, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def _for_each(self, n_prompts: int) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments, with a mask [prompt, head, query, key] for each prompt: some attentions take none that they share."""
        masks = {path for path, dims in self.dims.items() if len(dims) == 2}
        if not masks:
            return self.args, self.kwargs

        def expanded(path: Path, leaf: Any) -> Any:
            shared = path in masks and leaf.ndim == 4 and leaf.shape[0] == 1
            return leaf.expand(n_prompts, -1, -1, -1) if shared else leaf

        args, kwargs = _changed((self.args, dict(self.kwargs)), (), expanded)
        return args, kwargs

    def leaves(self) -> dict[Path, Any]:
        """Every argument, tuples and mappings taken apart, by its path."""
        return dict(_leaves((self.args, dict(self.kwargs)), ()))

    def at(self, places: slice | Tensor) -> "Call":
        """The call for other positions: those of a slice, or any, repeated ones too."""
        args, kwargs = _changed((self.args, dict(self.kwargs)), (), lambda path, leaf: self._taken(path, leaf, places))
        return Call(args, kwargs, self.dims)

    def _taken(self, path: Path, leaf: Any, places: slice | Tensor) -> Any:
        for dim in self.dims.get(path, ()):
            leaf = leaf[(slice(None),) * dim + (places,)]
        return leaf


class Recorder:
    """The arguments that some modules get in a prompt of any length, recorded from the model's own run of one prompt.

    Their batch dimension of one broadcasts over any batch (no padding).

    Args:
        modules: The modules, in the order of their calls.
        run: Runs the model on a batch of one prompt of token ids.
        texts: Two different prompts of as many tokens as the first of `LENGTHS` [2, pos].
        name: What errors call the model.

    Raises:
        ValueError: An argument depends on the text, or on the length in a way that cannot be cut along positions.
    """

    def __init__(self, modules: Sequence[nn.Module], run: Callable[[Tensor], Any], texts: Tensor, name: str) -> None:
        self._modules, self._run, self._name, self._device = modules, run, name, texts.device
        self._length, self._calls = 0, list[Call]()
        shorter, other, longer = (self._record(text) for text in (texts[:1, : LENGTHS[1]], texts[1:], texts[:1]))
        self._known = [self._position_dims(*calls) for calls in zip(longer, shorter, other, strict=True)]

    def calls(self, length: int) -> list[Call]:
        """The calls of a whole prompt of ``length`` tokens; those of the latest length alone are kept."""
        if length != self._length:
            calls = self._record(torch.zeros(1, length, dtype=torch.long, device=self._device))
            dims = (self._dims_of(call, known, length) for call, known in zip(calls, self._known, strict=True))
            self._calls = [Call(call.args, call.kwargs, found) for call, found in zip(calls, dims, strict=True)]
            self._length = length
        return self._calls

    def _record(self, tokens: Tensor) -> list[Call]:
        with recorded_calls(self._modules) as calls, torch.inference_mode():
            self._run(tokens)
        if len(calls) != len(self._modules):
            self._refuse(f"{len(calls)} of its {len(self._modules)} layers are called in a run, or some more than once")
        return calls

    def _position_dims(self, longer: Call, shorter: Call, other: Call) -> dict[Path, tuple[int, ...]]:
        found = {}
        short, text = shorter.leaves(), other.leaves()
        for path, leaf in longer.leaves().items():
            if path not in text or not _same(leaf, text[path]):
                self._refuse(f"{_named(path)} of its layers depends on the text")
            if path not in short or isinstance(leaf, Tensor) != isinstance(short[path], Tensor):
                self._refuse(f"{_named(path)} of its layers is there in some lengths of a prompt and not in others")
            if not isinstance(leaf, Tensor):
                if not _same(leaf, short[path]):
                    self._refuse(
                        f"{_named(path)} of its layers ({type(leaf).__name__}) depends on the length of the prompt and cannot "
                        "be cut (load the model with attn_implementation='sdpa')"
                    )
                continue
            sizes = list(zip(leaf.shape, short[path].shape, strict=True)) if leaf.ndim == short[path].ndim else []
            dims = tuple(dim for dim, (long, less) in enumerate(sizes) if long != less)
            if len(sizes) != leaf.ndim or any(sizes[dim] != LENGTHS for dim in dims):
                self._refuse(f"{_named(path)} of its layers grows with the prompt in a way that is not known")
            if dims:
                found[path] = dims
        return found

    def _dims_of(self, call: Call, known: Mapping[Path, tuple[int, ...]], length: int) -> dict[Path, tuple[int, ...]]:
        found = dict(known)
        for path, leaf in call.leaves().items():
            if path not in known and path[-1] == MASK and isinstance(leaf, Tensor):
                found[path] = (leaf.ndim - 2, leaf.ndim - 1)
            if any(leaf.shape[dim] != length for dim in found.get(path, ()) if isinstance(leaf, Tensor)):
                self._refuse(
                    f"{_named(path)} of its layers has shape {tuple(leaf.shape)} in a prompt of {length} tokens"
                )
        leaves = call.leaves()
        return {path: dims for path, dims in found.items() if isinstance(leaves.get(path), Tensor)}

    def _refuse(self, reason: str) -> None:
        raise ValueError(f"{self._name} cannot be run again in parts: {reason}")


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, tuple | list):
        for number, part in enumerate(value):
            yield from _leaves(part, (*path, number))
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    else:
        yield path, value


def _changed(value: Any, path: Path, change: Callable[[Path, Any], Any]) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_changed(part, (*path, number), change) for number, part in enumerate(value))
    if isinstance(value, Mapping):
        return {name: _changed(part, (*path, name), change) for name, part in value.items()}
    return change(path, value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, bool | int | float | str | torch.dtype | torch.device) or one is None:
        return type(one) is type(other) and one == other
    return one is other


def _named(path: Path) -> str:
    return "argument " + ".".join(map(str, path[1:]))


@contextmanager
def hooked(handles: Callable[[], list[Any]]) -> Iterator[None]:
    """Hold the hooks that ``handles`` registers for the length of the block, and remove them whatever happens."""
    registered: list[Any] = []
    try:
        registered.extend(handles())
        yield
    finally:
        for handle in registered:
            handle.remove()


@contextmanager
def recorded_calls(modules: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """Collect the arguments of the calls of some modules within the block, in the order of the calls."""
    calls: list[Call] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call.without_hidden(args, kwargs))

    with hooked(lambda: [m.register_forward_pre_hook(record, with_kwargs=True) for m in modules]):
        yield calls


@contextmanager
def forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run ``forward`` within the block; a forward of its own (a patch, a library's hook) is put back after it."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def gives(module: nn.Module, out: Tensor | None) -> Iterator[None]:
    """Let an attention module give ``out`` [batch, pos, d_model], known already; None lets it compute."""
    with ExitStack() as stack:
        if out is not None:
            given = (out, None)
            stack.enter_context(forward_is(module, lambda *_, **__: given))
        yield


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put every module's attributes, hooks, buffers and submodules back after the block, whatever happens in it.

    Our own hooks and forwards are removed where they are set; this is for what running a model changes in it, such as rotary
    tables that grow with the longest prompt met, and for an interrupt between two lines.
    """
    kept = [(module, _state(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, state in kept:
            _restore(module, state)


def _state(module: nn.Module) -> dict[str, Any]:
    """A module's attributes; of the mappings among them (parameters, submodules, hooks) a copy, of buffers their values too."""
    state = {name: value.copy() if isinstance(value, dict | set) else value for name, value in module.__dict__.items()}
    state["_buffers"] = {
        name: (buffer, None if buffer is None else buffer.clone()) for name, buffer in module._buffers.items()
    }
    return state


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    for name in module.__dict__.keys() - state.keys():
        del module.__dict__[name]
    for name, value in state.items():
        if name == "_buffers":
            module._buffers.clear()
            for key, (buffer, former) in value.items():
                if buffer is not None and not torch.equal(buffer, former):
                    buffer.copy_(former)
                module._buffers[key] = buffer
        elif isinstance(value, dict | set):
            _restore_contents(module.__dict__, name, value)
        elif module.__dict__.get(name) is not value:
            module.__dict__[name] = value


def _restore_contents(attributes: dict[str, Any], name: str, former: dict | set) -> None:
    """Put back what a mapping or set held, in the object that held it."""
    current = attributes.setdefault(name, former)
    if type(current) is not type(former):
        attributes[name] = former
    elif _identities(current) != _identities(former):
        current.clear()
        current.update(former)


def _identities(values: dict | set) -> list[tuple[int, int]]:
    """What a mapping or set holds, by identity, as tensors have no plain equality."""
    return [(id(key), id(values[key]) if isinstance(values, dict) else 0) for key in values]
