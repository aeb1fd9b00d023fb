"""Meshes: how a model's parameters lie on several devices, by one table."""

from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxlin.aligned import aligned
from jaxlin.config import Config
from jaxlin.errors import JaxlinError

AXIS = "model"
"""The mesh axis over which matrices are split."""

SPLIT: dict[str, Literal["rows", "columns"]] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1"), "rows"),
    **dict.fromkeys(("o_proj", "down_proj", "fc2"), "columns"),
    **dict.fromkeys(("embed_tokens", "lm_head"), "rows"),
}
"""How the matrix of each module is split: heads and hidden features lie apart, so that one sum over the devices ends
attention and one ends the MLP. What is not named is on every device."""


def check_mesh(mesh: Mesh, config: Config) -> None:
    """Refuse a mesh that jaxlin cannot use for a model.

    Raises:
        JaxlinError: no axis ``"model"``, or one that does not divide the heads.
    """
    if AXIS not in mesh.axis_names:
        raise JaxlinError(f'Mesh: expected an axis "{AXIS}"; found {", ".join(map(str, mesh.axis_names))}.')
    size = mesh.shape[AXIS]
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, key) % size:
            raise JaxlinError(
                f'Mesh: expected an axis "{AXIS}" whose size divides {key} = {getattr(config, key)}; found {size}.'
            )


def sharding_of(mesh: Mesh | None, name: str, shape: tuple[int, ...]) -> Sharding:
    """Where an array lies that is a parameter, or a part of a packed one.

    Args:
        mesh: None for the default device.
        name: the parameter's path; below ``layers.`` the first axis counts layers.
        shape: of the array.
    """
    if mesh is None:
        return SingleDeviceSharding(jax.devices()[0])
    how = next((SPLIT[part] for part in name.split(".") if part in SPLIT), None)
    first = int(name.startswith("layers."))
    axis = {"rows": first, "columns": first + 1, None: len(shape)}[how]
    if axis >= len(shape) or shape[axis] % mesh.shape[AXIS]:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


class Placed:
    """An array that is written layer by layer into the parts that the present process's devices hold.

    No more is in memory at a time than the parts and the layer at hand.
    """

    def __init__(self, sharding: Sharding, shape: tuple[int, ...], dtype: Any) -> None:
        self.sharding, self.shape, self.dtype = sharding, shape, np.dtype(dtype)
        self._devices = sharding.addressable_devices_indices_map(shape)
        self._parts: dict[Any, np.ndarray] = {}
        for index in self._devices.values():
            local = [len(range(size)[part]) for size, part in zip(shape, index or (), strict=True)]
            self._parts.setdefault(str(index), aligned(tuple(local), self.dtype))

    def __setitem__(self, layer: int, value: Any) -> None:
        for index in {str(index): index for index in self._devices.values()}.values():
            self._parts[str(index)][layer] = np.asarray(value)[(index or ())[1:]]

    def array(self) -> jax.Array:
        """The array, on its devices."""
        parts = [
            jax.device_put(self._parts[str(index)], device, may_alias=True) for device, index in self._devices.items()
        ]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, parts)
