"""A Ray cluster of several local nodes, of which one is killed in the middle and another added.

python benchmarks/cluster/ray_nodes.py WORK
"""

import os
import subprocess
import sys
from pathlib import Path

import ray
from common import MEDATTACK, Log, compare, parts, prepare, wait_for, watched
from ray.cluster_utils import Cluster


def main(work: Path) -> list[str]:
    log, study = Log(), work / "ray"
    words = prepare(work)
    log("single process is done")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    cluster.wait_for_nodes()
    log(f"Ray {ray.__version__} has {len(cluster.list_all_nodes())} nodes of one core each")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": cluster.address, "MEDATTACK_PROGRESS": "0"}
    command = [*MEDATTACK, *words, "--out", str(study), "--launcher", "ray", "--workers", "5", "--no-checks"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            wait_for(lambda: len(parts(study)) >= 2 or run.poll() is not None, "parts on the disk")
            cluster.remove_node(nodes[0], allow_graceful=False)
            log(f"killed a node; {len(parts(study))} parts are on the disk")
            cluster.add_node(num_cpus=1)
            log(f"added a node: {len(cluster.list_all_nodes())} nodes")
            log(watched(study))
        finally:
            output, _ = run.communicate(timeout=900)
    assert run.returncode == 0, output
    log("medattack attack --launcher ray has ended with exit code 0")
    lines = [line for log_file in (study / "workers").glob("*.log") for line in log_file.read_text().splitlines()]
    begun = [line.split()[1] for line in lines if line.startswith("part ")]
    again = sorted({part for part in begun if begun.count(part) > 1})
    log(f"{len(begun)} tasks were begun for 5 parts; begun again: {', '.join(again) or 'none'}")
    log(compare(work / "alone", study))
    cluster.shutdown()
    return log.lines


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
