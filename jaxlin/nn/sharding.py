"""Meshes: how the parameters of a model, and the rows of its map, are laid out on several devices.

A mesh has an axis ``"model"``, over which matrices are split as one table says, and may have an axis ``"rows"``, over
which the vectors that pass through a local linear map are divided. The first makes room; the second saves time and
needs no exchange between devices. Several processes take part in one mesh as they do in JAX
(`jax.distributed.initialize`): each stores its own parts, and all of them call the same functions. NumPy arrays are
complete in each process. The product of a map with many vectors stays divided until
`jax.experimental.multihost_utils.process_allgather` puts it together.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.core
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxlin.common.arguments import checked
from jaxlin.common.arrays import aligned_empty
from jaxlin.common.errors import JaxlinError

MODEL_AXIS, ROWS_AXIS = "model", "rows"
"""The mesh axis over which matrices are split, and the one over which vectors are divided."""

SPLITS: dict[str, Literal["experts", "rows", "columns"]] = {
    "experts": "experts",
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "q_b_proj", "k_b_proj", "v_b_proj"), "rows"),
    **dict.fromkeys(("g_proj", "gate_proj", "up_proj", "fc1"), "rows"),
    **dict.fromkeys(("o_proj", "down_proj", "fc2"), "columns"),
    **dict.fromkeys(("embed_tokens", "lm_head"), "rows"),
}
"""How the matrix of each module is split. Heads, hidden features and experts are divided among the devices, so that
attention and the MLP each end in one sum over the devices. A parameter that is not named here is on every device."""


@checked
def mesh_over(devices: int, sizes: Mapping[str, int]) -> Mesh:
    """A mesh of `devices` of the devices that there are.

    Its axis ``"model"`` is as long as the sizes allow, and its axis ``"rows"`` takes the rest.

    Args:
        devices: how many.
        sizes: the sizes of the model that ``"model"`` must divide, by name: `jaxlin.nn.Config.split_sizes`.

    Raises:
        JaxlinError: there are fewer devices.
    """
    available = jax.devices()
    if not 1 <= devices <= len(available):
        raise JaxlinError(
            f"Devices: expected a number in 1..{len(available)}, the devices there are; found {devices}. On a CPU, "
            f'jax.config.update("jax_num_cpu_devices", {devices}) makes as many, before anything is computed.'
        )
    split = math.gcd(devices, *sizes.values())
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(
        (devices // split, split), (ROWS_AXIS, MODEL_AXIS), axis_types=axes, devices=available[:devices]
    )


def checked_mesh(mesh: Mesh | int, sizes: Mapping[str, int]) -> Mesh:
    """`mesh` with axes whose sharding XLA decides, or that of `mesh_over` for a number of devices.

    Raises:
        JaxlinError: no axis ``"model"``, or one that does not divide the `sizes`; an axis that is neither it nor
            ``"rows"``; or fewer devices than that number.
    """
    if isinstance(mesh, int):
        return mesh_over(mesh, sizes)
    if MODEL_AXIS not in mesh.axis_names or set(mesh.axis_names) - {MODEL_AXIS, ROWS_AXIS}:
        names = ", ".join(map(str, mesh.axis_names))
        raise JaxlinError(f'Mesh: expected an axis "{MODEL_AXIS}", and "{ROWS_AXIS}" or none beside it; found {names}.')
    length = mesh.shape[MODEL_AXIS]
    for name, size in sizes.items():
        if size % length:
            raise JaxlinError(
                f'Mesh: expected an axis "{MODEL_AXIS}" whose size divides {name} = {size}; found {length}.'
            )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def sharding_of(mesh: Mesh | None, name: str, shape: tuple[int, ...]) -> Sharding:
    """The sharding of an array that is a parameter, or a part of a packed one.

    Args:
        mesh: None for the default device.
        name: the parameter's path; below ``layers.`` the first axis counts layers, below ``experts.`` the next one
            counts experts.
        shape: of the array.
    """
    if mesh is None:
        return SingleDeviceSharding(jax.devices()[0])
    split = next((SPLITS[part] for part in name.split(".") if part in SPLITS), None)
    first = int(name.startswith("layers."))
    axis = {"experts": first, "rows": first, "columns": first + 1, None: len(shape)}[split]
    if axis >= len(shape) or shape[axis] % mesh.shape[MODEL_AXIS]:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, MODEL_AXIS))


def mesh_of(model: Any) -> Mesh | None:
    """The mesh that a model was loaded to; None if there is none, or within a transform, where arrays have no place."""
    parameter = jax.tree.leaves(model)[0]
    sharding = None if isinstance(parameter, jax.core.Tracer) else getattr(parameter, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def row_parts(mesh: Mesh | None) -> int:
    """Into how many parts a mesh divides vectors."""
    return 1 if mesh is None else mesh.shape.get(ROWS_AXIS, 1)


def spread_rows(u: Any, mesh: Mesh | None) -> Any:
    """Vectors, ``[b, ...]``, divided over a mesh; every device has all of them where `b` cannot be divided."""
    if mesh is None or isinstance(u, jax.core.Tracer):
        return u
    parts = row_parts(mesh)
    spec = PartitionSpec(ROWS_AXIS) if parts > 1 and u.shape[0] % parts == 0 else PartitionSpec()
    values = np.asarray(u)
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), lambda index: values[index])


def gather(a: jax.Array) -> jax.Array:
    """`a`, complete in every process; within a transform, where arrays have no place, `a` itself."""
    if isinstance(a, jax.core.Tracer) or a.is_fully_addressable or a.is_fully_replicated:
        return a
    assert isinstance(a.sharding, NamedSharding)
    return _replicate(a.sharding.mesh)(a)


def to_numpy(a: Any) -> np.ndarray:
    """`a` as an array of NumPy, complete in every process."""
    return np.asarray(gather(a) if isinstance(a, jax.Array) else a)


@functools.cache
def _replicate(mesh: Any) -> Any:
    return jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, PartitionSpec()))


def broadcast_from_first(number: int) -> int:
    """The `number` of the first process, in every process; it returns once all processes have called it."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


class ShardedArray:
    """An array that is written, at once or matrix by matrix, into the parts on this process's devices.

    At any time only these parts and the rows that are being written are in memory.
    """

    def __init__(self, sharding: Sharding, shape: tuple[int, ...], dtype: Any) -> None:
        self.sharding, self.shape, self.dtype = sharding, shape, np.dtype(dtype)
        self._devices = {
            device: index or () for device, index in sharding.addressable_devices_indices_map(shape).items()
        }
        self._parts: dict[str, np.ndarray] = {}

    def write(self, value: Any, place: tuple[int, ...] = ()) -> None:
        """Store the parts of the array, or of the one at a place in its leading axes, whose rows ``value[rows]`` gives.

        Args:
            value: the array.
            place: its layer, or its layer and expert, of which the first axes are; what no device has is not read.
        """
        rows, block, leading = None, None, len(place)
        for key, index in {str(index): index for index in self._devices.values()}.items():
            # Each leading axis as the range that the device has of it; of layers, a stack has all.
            ranges = [range(size)[part] for size, part in zip(self.shape, index[:leading], strict=False)]
            if not all(i in part for i, part in zip(place, ranges, strict=False)):
                continue
            part_index = index[leading:]
            if part_index and part_index[0] != rows:
                rows, block = part_index[0], value[part_index[0]]
            part = value if block is None else block[(slice(None), *part_index[1:])]
            if not place:
                self._parts[key] = np.ascontiguousarray(part).reshape(np.shape(part))
                continue
            if key not in self._parts:
                self._parts[key] = aligned_empty((*map(len, ranges), *np.shape(part)), self.dtype)
            self._parts[key][tuple(i - part.start for i, part in zip(place, ranges, strict=True))] = part

    def has(self, place: tuple[int, ...]) -> bool:
        """Whether a device of this process has a part of the array at a place in the leading axes."""
        return any(
            all(i in range(size)[part] for i, size, part in zip(place, self.shape, index, strict=False))
            for index in self._devices.values()
        )

    def array(self, layers: int | None = None) -> jax.Array:
        """The array, on its devices; of a stack only the first `layers`, if no others were written."""
        parts = [
            jax.device_put(
                self._parts[str(index)][:layers] if self.shape else self._parts[str(index)], device, may_alias=True
            )
            for device, index in self._devices.items()
        ]
        shape = self.shape if layers is None else (layers, *self.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self.sharding, parts)
