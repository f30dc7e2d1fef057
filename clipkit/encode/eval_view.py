"""Use a module in eval mode while others train it."""

import copy
import functools
from types import MethodType
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import nn

Model = TypeVar("Model")
_Views: TypeAlias = "dict[nn.Module, nn.Module]"  # the view of each module


def eval_view(model: Model) -> Model:
    """Return the model in eval mode, sharing all weights and statistics with the original.

    The original keeps its modes. To flip them for a while, as `model.eval()` does, would race with
    other threads: one would encode with what another has just switched back.

    Args:
        model: any module. Anything else is returned as it is, and so is a module that is in eval
            mode already.

    Returns:
        A model of the same class. Its modules are new, but have the very parameters, buffers, hooks
        and attributes of the original's. It should not be kept: what is assigned to an attribute of
        the original later does not reach it.

    Example:
        with torch.no_grad():
            features = eval_view(model).encode_image(images)  # model.training is as it was
    """
    if not isinstance(model, nn.Module):
        return model
    if not any(module.training for module in model.modules()):
        return model
    views: _Views = {}
    root = _view(model, views)
    for module, view in views.items():
        for name, value in module.__dict__.items():
            if isinstance(value, MethodType | functools.partial):
                view.__dict__[name] = _redirect(value, views)
    return cast(Model, root)


def _view(module: nn.Module, views: _Views) -> nn.Module:
    """Return the view of a module, and add it and those of the modules below it to `views`."""
    if isinstance(module, torch.jit.ScriptModule):
        return copy.deepcopy(module).eval()  # its state is not in Python, and cannot be shared
    children: dict[str, nn.Module | None] = module.__dict__["_modules"]
    compiled = children.get("_orig_mod")
    if compiled is not None:  # what `torch.compile` made of it computes in train mode
        return _view(compiled, views)
    if module in views:
        return views[module]
    # Neither `copy.copy` nor `copy.deepcopy` would do: they ask the module how to be pickled, which
    # parametrized and sharded ones refuse.
    view = views[module] = object.__new__(type(module))
    view.__dict__.update(module.__dict__)
    view.__dict__["_modules"] = {
        name: None if child is None else _view(child, views) for name, child in children.items()
    }
    view.__dict__["_compiled_call_impl"] = (
        None  # of `module.compile()`, which leads to the original
    )
    view.__dict__["training"] = False
    return view


def _redirect(value: Any, views: _Views) -> Any:
    """Return an attribute's value with the views in place of the modules that it is bound to.

    Libraries replace methods of a module by such functions. They would lead back to the original.
    """
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, views.get(value.__self__, value.__self__))
    if isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        arguments = [_redirect_module(argument, views) for argument in partial.args]
        options = {k: _redirect_module(v, views) for k, v in partial.keywords.items()}
        return functools.partial(partial.func, *arguments, **options)
    return value


def _redirect_module(value: Any, views: _Views) -> Any:
    return views.get(value, value) if isinstance(value, nn.Module) else value
