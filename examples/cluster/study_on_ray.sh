#!/bin/bash
# A study on a Ray cluster: examples/cluster/study_on_ray.sh STUDY.yaml OUT
# RAY_ADDRESS names a cluster that is there; without it Ray is started on this machine.
# Machines may be added (`ray start --address=HEAD:6379`) and lost while it runs; lost parts are computed again.
set -euo pipefail
medattack attack --config "$1" --out "$2" --launcher ray --no-progress
medattack watch "$2" --once
