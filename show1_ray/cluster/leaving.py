"""Leaving Ray, which may wait forever for its own stopped processes. Does not import Ray."""

from __future__ import annotations

import threading

LEAVE_SECONDS = 10.0
"""How many seconds Ray may take to disconnect."""
_leaving: threading.Thread | None = None


def leave(early: bool) -> None:
    """Disconnects. Where that takes too long, what was started here is killed; if not even that helps, `is_stuck`.

    Args:
        early: whether threads may still ask something of Ray: it would start anew for them, by itself. From now on it
            does not.
    """
    import ray
    from ray._private import auto_init_hook

    global _leaving
    if early:
        auto_init_hook.enable_auto_connect = False
    own = ray._private.worker._global_node
    _leaving = threading.Thread(target=ray.shutdown, name="leaving Ray", daemon=True)
    _leaving.start()
    _leaving.join(LEAVE_SECONDS)
    if _leaving.is_alive() and own is not None:
        own.kill_all_processes(check_alive=False, allow_graceful=False)
        _leaving.join(LEAVE_SECONDS / 3)


def is_stuck() -> bool:
    """Whether Ray is still disconnecting. The interpreter would wait for it at exit: use `os._exit`."""
    return _leaving is not None and _leaving.is_alive()
