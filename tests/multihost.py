"""One of two processes on loopback that compute a dense map together; test_parallel runs it, and may have it killed."""

import json
import os
import signal
import sys

import jax

folder, out, ids, index, port, dies_after = sys.argv[1:7]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index), heartbeat_timeout_seconds=10)

import jaxlin  # noqa: E402  JAX must know of the others before it is used
from jaxlin.linearize.operator import LocalMap  # noqa: E402
from jaxlin.spectrum.prediction_ranks import map_ranks  # noqa: E402

calls, pull = 0, LocalMap.rmatvec


def counted(lmap: LocalMap, u: jax.Array) -> jax.Array:
    """`LocalMap.rmatvec`, which kills the process after `dies_after` calls."""
    global calls
    calls += 1
    if calls > int(dies_after) >= 0 and index == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return pull(lmap, u)


LocalMap.rmatvec = counted
model, _ = jaxlin.load(folder, mesh=4)
lmap = jaxlin.local_map(model, model.embed(list(map(int, ids.split(",")))))
jacobian = lmap.jacobian(out=out, block=4, progress=False)
mesh = dict(model.embed_tokens.weight.get_value().sharding.mesh.shape)
report = {"mesh": mesh, "calls": calls, "shape": jacobian.shape, "residual": lmap.residual}
report |= {method: lmap.svd(4, method=method).s.tolist() for method in ("dense", "krylov")}
report["stable rank"] = map_ranks(lmap).joint.stable
report["tokens"] = jaxlin.attribute(model, lmap.x, 7).tokens.tolist()
print(json.dumps(report))
