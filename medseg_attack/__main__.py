"""The console script, and `python -m medseg_attack`. Nothing is imported before an interruption can be answered."""

import os
import signal
from types import FrameType


def _quit(_number: int, _frame: FrameType | None) -> None:
    os._exit(130)


def main() -> None:
    """Runs `medattack`; an interruption before or after a command's own work ends without a traceback."""
    signal.signal(signal.SIGINT, _quit)
    from medseg_attack.cli import main as run

    run()


if __name__ == "__main__":
    main()
