"""A job array of a real SLURM, one task of which is killed and queued again: python benchmarks/cluster/slurm.py WORK.

It installs Debian's slurm-wlm and munge where they are absent, and needs root.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from common import Log, compare, medattack, parts, prepare, wait_for, watched

SCRIPT = Path(__file__).with_name("one_node_slurm.sh")


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def worker_at_work(study: Path) -> tuple[int, str] | None:
    """Process and part of a worker that has written something and is not done."""
    written = {writer_of(file) for file in parts(study).values()}
    for file in (study / "workers").glob("*.json"):
        record = json.loads(file.read_text())
        if record.get("ended") is None and file.stem in written:
            return record["pid"], record["part"]
    return None


def writer_of(file: Path) -> str:
    import pyarrow.parquet as pq

    return str((pq.read_schema(file).metadata or {}).get(b"worker", b"").decode())


def main(work: Path) -> list[str]:
    log, study = Log(), work / "array"
    words = prepare(work)
    log("single process is done")
    node = work / "slurm"
    subprocess.run([SCRIPT, node, "start"], check=True)
    os.environ["SLURM_CONF"] = str(node / "slurm.conf")
    try:
        log(f"{slurm('slurmctld', '-V')} has the node {slurm('sinfo', '--noheader', '--format=%n %T, %c cores')}")
        settings = ["--slurm", "partition=main", "--slurm", "cpus_per_task=1", "--slurm", "time=30"]
        output = medattack(*words, "--out", str(study), "--launcher", "slurm", "--workers", "3", *settings)
        submitted = next(line for line in output.splitlines() if line.startswith("submitted"))
        log(submitted.replace(str(work), "WORK"))
        wait_for(lambda: worker_at_work(study) is not None, "a task that has written a part")
        process, part = worker_at_work(study) or (0, "")
        os.kill(process, signal.SIGKILL)
        log(f"killed the process of part {part}; {len(parts(study))} parts are on the disk")
        task = f"{slurm('squeue', '--noheader', '--format=%F').split()[0]}_{part.split('/')[0]}"
        wait_for(lambda: "FAILED" in slurm("scontrol", "show", "job", task), "a job that failed")
        log(f"SLURM says of {task}: {state_of(task)}")
        subprocess.run(["scontrol", "requeue", task], check=True)
        log(f"queued again: {task}, {state_of(task)}")
        log(watched(study))
        wait_for(lambda: not slurm("squeue", "--noheader"), "an empty queue")
        log(f"the queue is empty; SLURM says of {task}: {state_of(task)}")
        log(watched(study))
        log(compare(work / "alone", study))
    finally:
        subprocess.run([SCRIPT, node, "stop"], check=False)
    return log.lines


def state_of(task: str) -> str:
    shown = slurm("scontrol", "show", "job", task).split()
    return ", ".join(word for word in shown if word.startswith(("JobState=", "Restarts=", "ExitCode=")))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
