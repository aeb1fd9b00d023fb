"""Meshes: how a model's parameters, and the rows of its map, lie on several devices.

A mesh has an axis ``"model"``, over which matrices are split by one table, and may have an axis ``"rows"``, over which
the vectors that pass a local linear map are spread: the first makes room, the second saves time without any exchange
between devices. Several processes take part in one mesh as JAX has it (`jax.distributed.initialize`); each holds its
own parts, and all of them call the same functions. What NumPy gets is whole in each; what a map makes of many vectors
stays spread, until `jax.experimental.multihost_utils.process_allgather`.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.core
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxlin.common.arrays import aligned_empty
from jaxlin.common.errors import JaxlinError
from jaxlin.nn.config import Config

AXIS, ROWS = "model", "rows"
"""The mesh axis over which matrices are split, and the one over which vectors are spread."""

SPLIT: dict[str, Literal["rows", "columns"]] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1"), "rows"),
    **dict.fromkeys(("o_proj", "down_proj", "fc2"), "columns"),
    **dict.fromkeys(("embed_tokens", "lm_head"), "rows"),
}
"""How the matrix of each module is split: heads and hidden features lie apart, so that one sum over the devices ends
attention and one ends the MLP. What is not named is on every device."""


DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""What the axis ``"model"`` must divide."""


def mesh_over(devices: int, config: Config) -> Mesh:
    """A mesh of `devices` of the devices there are, for a model.

    Its axis ``"model"`` is as long as the heads and hidden features allow, and its axis ``"rows"`` takes the rest.

    Raises:
        JaxlinError: there are fewer devices.
    """
    there = jax.devices()
    if not 1 <= devices <= len(there):
        raise JaxlinError(
            f"Devices: expected a number in 1..{len(there)}, the devices there are; found {devices}. On a CPU, "
            f'jax.config.update("jax_num_cpu_devices", {devices}) makes as many, before anything is computed.'
        )
    split = math.gcd(devices, *(getattr(config, key) for key in DIVIDED))
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((devices // split, split), (ROWS, AXIS), axis_types=axes, devices=there[:devices])


def checked_mesh(mesh: Mesh | int, config: Config) -> Mesh:
    """`mesh` with axes whose sharding XLA decides, or that of `mesh_over` for a number of devices.

    Raises:
        JaxlinError: no axis ``"model"``, or one that does not divide the heads; an axis that is neither it nor
            ``"rows"``; or fewer devices than asked for.
    """
    if isinstance(mesh, int):
        return mesh_over(mesh, config)
    if AXIS not in mesh.axis_names or set(mesh.axis_names) - {AXIS, ROWS}:
        found = ", ".join(map(str, mesh.axis_names))
        raise JaxlinError(f'Mesh: expected an axis "{AXIS}", and "{ROWS}" or none beside it; found {found}.')
    size = mesh.shape[AXIS]
    for key in DIVIDED:
        if getattr(config, key) % size:
            raise JaxlinError(
                f'Mesh: expected an axis "{AXIS}" whose size divides {key} = {getattr(config, key)}; found {size}.'
            )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


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


def mesh_of(model: Any) -> Mesh | None:
    """The mesh that a model was loaded to; None if there is none, and within a transform, which knows no places."""
    parameter = jax.tree.leaves(model)[0]
    sharding = None if isinstance(parameter, jax.core.Tracer) else getattr(parameter, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def rows_over(mesh: Mesh | None) -> int:
    """Over how many parts of a mesh vectors are spread."""
    return 1 if mesh is None else mesh.shape.get(ROWS, 1)


def spread(u: Any, mesh: Mesh | None) -> Any:
    """Vectors, ``[b, ...]``, in their places on a mesh; on each device all of them where `b` cannot be divided."""
    if mesh is None or isinstance(u, jax.core.Tracer):
        return u
    parts = rows_over(mesh)
    spec = PartitionSpec(ROWS) if parts > 1 and u.shape[0] % parts == 0 else PartitionSpec()
    values = np.asarray(u)
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), lambda index: values[index])


def gathered(a: jax.Array) -> jax.Array:
    """`a`, whole in every process; within a transform, which knows no places, as it is."""
    if isinstance(a, jax.core.Tracer) or a.is_fully_addressable or a.is_fully_replicated:
        return a
    assert isinstance(a.sharding, NamedSharding)
    return _gather(a.sharding.mesh)(a)


def on_host(a: Any) -> np.ndarray:
    """`a` as an array of NumPy, whole in every process."""
    return np.asarray(gathered(a) if isinstance(a, jax.Array) else a)


@functools.cache
def _gather(mesh: Any) -> Any:
    return jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, PartitionSpec()))


def said_by_first(number: int) -> int:
    """The `number` of the first process, in every process, once all of them have called this."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


class Placed:
    """An array that is put, whole or layer by layer, into the parts that the present process's devices hold.

    No more is in memory at a time than the parts and the rows at hand.
    """

    def __init__(self, sharding: Sharding, shape: tuple[int, ...], dtype: Any) -> None:
        self.sharding, self.shape, self.dtype = sharding, shape, np.dtype(dtype)
        self._devices = {
            device: index or () for device, index in sharding.addressable_devices_indices_map(shape).items()
        }
        self._parts: dict[str, np.ndarray] = {}

    def take(self, value: Any, layer: int | None = None) -> None:
        """The parts of the array, or of one layer of the stack, whose rows ``value[rows]`` gives."""
        rows, found = None, None
        for key, index in {str(index): index for index in self._devices.values()}.items():
            wanted = index if layer is None else index[1:]
            if wanted and wanted[0] != rows:
                rows, found = wanted[0], value[wanted[0]]
            part = value if found is None else found[(slice(None), *wanted[1:])]
            if layer is None:
                self._parts[key] = np.ascontiguousarray(part).reshape(np.shape(part))
            else:
                if key not in self._parts:
                    self._parts[key] = aligned_empty((self.shape[0], *np.shape(part)), self.dtype)
                self._parts[key][layer] = part

    def array(self, layers: int | None = None) -> jax.Array:
        """The array, on its devices; of a stack perhaps only the first `layers`, where no others were put."""
        parts = [
            jax.device_put(
                self._parts[str(index)][:layers] if self.shape else self._parts[str(index)], device, may_alias=True
            )
            for device, index in self._devices.items()
        ]
        shape = self.shape if layers is None else (layers, *self.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self.sharding, parts)
