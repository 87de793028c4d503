"""A local cluster that Ray's autoscaler grows and shrinks.

As `ray.cluster_utils.AutoscalingCluster`, whose example file Ray's wheel lacks; with an address and folder of its own,
and without `ray stop`, which would end other clusters of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the provider's own


class AutoscalingCluster:
    """A head without GPUs, and as many nodes of one simulated GPU as the autoscaler wants."""

    def __init__(self, most: int, idle_minutes: float) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        node = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000}, "node_config": {}}
        config: dict[str, Any] = {
            "cluster_name": "fake",
            "max_workers": most,
            "idle_timeout_minutes": idle_minutes,
            "upscaling_speed": 10,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "head_node_id": HEAD_ID,
                "launch_multiple": True,
                "use_node_id_as_ip": True,  # they share one
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
                "ray.worker.gpu": {**node, "min_workers": 0, "max_workers": most},
            },
            "head_node_type": "ray.head.default",
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
        }
        (self.folder / "config.json").write_text(json.dumps(config))
        environment = {
            **os.environ,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            # What this process talks with: an earlier Ray of it may have turned token authentication on.
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
        }
        command = ["start", "--head", "--num-cpus=2", "--object-store-memory=100000000", "--include-dashboard=false"]
        command += [f"--port={port}", f"--temp-dir={self.folder}"]
        command += [f"--autoscaling-config={self.folder}/config.json", "--node-ip-address=127.0.0.1"]
        ray = Path(sys.executable).with_name("ray")
        subprocess.run([ray, *command], env=environment, check=True, capture_output=True)

    def shutdown(self) -> None:
        """Ends every process of this cluster: those that know its folder or its address."""
        names = (str(self.folder), self.address)
        found = [
            p for p in psutil.process_iter(["cmdline"]) if any(n in " ".join(p.info["cmdline"] or ()) for n in names)
        ]
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)
