"""Says in one line why a model cannot be drawn with as it is: weights are elsewhere or in parts, or hooks come between."""

from collections.abc import Iterable

from torch import nn

_GATHER = (
    "gather them into a plain model before drawing (torch.distributed.checkpoint.state_dict.get_model_state_dict "
    "with full_state_dict=True)"
)
_TAKE_OFF = "accelerate.hooks.remove_hook_from_module(model, recurse=True)"


def check_sound(modules: Iterable[nn.Module], hooked: bool = False) -> None:
    """Raises ValueError unless all weights of some modules are here, whole and on one device.

    With `hooked` they are called as they are, so that accelerate's hooks are no hindrance.
    """
    devices = set()
    for module in {id(each): each for whole in modules for each in whole.modules()}.values():
        own = vars(module)
        if not hooked and "_hf_hook" in own:
            raise ValueError(
                "model must not be dispatched or offloaded by accelerate, got its hooks: take them off with "
                f"{_TAKE_OFF}, and have the model on one device"
            )
        for weight in own["_parameters"].values():
            if weight is not None:
                devices.add(weight.device)
                if type(weight) is not nn.Parameter and type(weight).__module__.startswith("torch.distributed"):
                    raise ValueError(
                        "model must hold its weights whole, got ones that FSDP or tensor parallelism has sharded "
                        f"({type(weight).__name__}): {_GATHER}"
                    )
        if type(module) is nn.Linear and (shape := _shape_in_parts(module)) is not None:
            raise ValueError(
                f"model must hold its weights whole, got one of shape {shape} for a Linear of "
                f"[{module.out_features}, {module.in_features}] that FSDP or ZeRO has flattened or sharded: {_GATHER}"
            )
    if any(device.type == "meta" for device in devices) or len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(
            f"model must be on one device as a whole, got {names}"
            + ("; 'meta' holds no weights: load them first" if "meta" in names else ": move it to one of them")
        )


def _shape_in_parts(linear: nn.Linear) -> list[int] | None:
    """Returns the shape of a weight that is not the whole of a Linear's parameter; else None.

    The first FSDP, with use_orig_params=False, puts a view in the place of a parameter.
    """
    own, shape = vars(linear), linear.weight.shape
    view = "weight" in own and own.get("_is_fsdp_managed_module", False)
    return list(shape) if view or shape != (linear.out_features, linear.in_features) else None
