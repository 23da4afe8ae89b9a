"""A batch size that is given, or one that is found while attacks run."""

import logging
from dataclasses import dataclass

import torch

FIRST = 8  # cases per batch that a search for the size begins with
GAIN = 1.05  # of cases per second that a doubled batch must bring to be doubled again


@dataclass
class BatchSize:
    """The number of cases per batch.

    An automatic one doubles while that attacks more cases per second, and halves where the memory does not suffice.
    Rows do not depend on it by more than float32 kernels do; see `RunOptions`.

    Attributes:
        size: cases per batch now.
        is_automatic: whether it may change.
        grows: whether it may still double.
    """

    size: int = FIRST
    is_automatic: bool = True
    grows: bool = True
    _rate: float = 0.0  # cases per second of the size before

    @classmethod
    def of(cls, size: int | None) -> "BatchSize":
        """The batch size of that many cases; an automatic one if it is None."""
        return cls() if size is None else cls(size, is_automatic=False)

    def note(self, cases: int, seconds: float) -> None:
        """Takes into account how long a chunk of so many cases took; one that fills no batch says nothing."""
        if not self.is_automatic or not self.grows or cases <= self.size:
            return
        rate = cases / seconds
        if rate < GAIN * self._rate:
            self.size, self.grows = self.size // 2, False
        else:
            self.size, self._rate = 2 * self.size, rate

    def halve(self, error: Exception, cases: int) -> None:
        """Halves the size, after a batch of so many cases met an error, and says so.

        Raises:
            Exception: `error`, if the size is a given one, the batch was of one case, or memory was not the reason.
        """
        if not self.is_automatic or cases == 1 or not is_out_of_memory(error):
            raise error
        self.size, self.grows = cases // 2, False
        logging.getLogger(__name__).warning(
            "note: %d cases per batch need more memory than there is; going on with %d", cases, self.size
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice: torch's own of a GPU, and the texts of its CPU allocators."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )
