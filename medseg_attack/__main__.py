"""`python -m medseg_attack` is `medattack`."""

from medseg_attack.cli import main

main()
