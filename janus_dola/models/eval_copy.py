"""Copies of modules in eval mode, which compute with the same parameters, and have modes, hooks and buffers of their own.

So a model that is in the middle of training is used in eval mode, or under hooks, and is never changed: nobody who trains it
in another thread notices, and nothing has to be put back.
"""

import functools
from collections import OrderedDict
from types import FunctionType, MethodType
from typing import Any, TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)
_SHARED = ("_parameters",)  # so that weights which others put in, such as gathered ones, are seen


def in_eval_mode(module: _Module) -> _Module:
    """Returns what computes as a module does in eval mode: itself, or a copy if a part is in training or has hooks."""
    moved = any(each.training or each._forward_hooks or each._forward_pre_hooks for each in module.modules())
    return eval_copy(module) if moved else module


def eval_copy(module: _Module) -> _Module:
    """Copies a module and all below it but the parameters, in eval mode, without gradient checkpointing and uncompiled."""
    return _eval_copy(module, {})


def _eval_copy(module: Any, made: dict[int, Any]) -> Any:
    if id(module) not in made:
        new = made[id(module)] = object.__new__(type(module))
        own = {name: value if name in _SHARED else _own(value, module, new) for name, value in vars(module).items()}
        children = {name: child and _eval_copy(child, made) for name, child in module._modules.items()}
        vars(new).update(own, _modules=children, training=False, _compiled_call_impl=None)
    return made[id(module)]


def _own(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """Returns an attribute for a copy: what was bound to the old module is bound to the new; registers are copied."""
    if isinstance(value, FunctionType):
        value = getattr(value, "_torchdynamo_orig_callable", value)  # what was compiled
    if isinstance(value, MethodType) and value.__self__ is old:
        return MethodType(value.__func__, new)
    if isinstance(value, functools.partial) and any(each is old for each in value.args):
        return functools.partial(value.func, *(new if each is old else each for each in value.args), **value.keywords)
    return value.copy() if type(value) in (dict, list, set, OrderedDict) else value
