"""Progress: a bar in the terminal, and the caller's callback."""

from collections.abc import Callable

from tqdm.auto import tqdm

Callback = Callable[[int, int], object]


class Progress(tqdm):
    """Counts codes as they are decided; calls back with two counts: codes decided, and codes in the images begun."""

    def __init__(self, shown: bool = False, callback: Callback | None = None) -> None:
        super().__init__(disable=not shown, unit="tok", leave=False, total=0)
        self._decided, self._callback = 0, callback

    def back_to(self, codes: int) -> None:
        """Sets the count back: only so many codes are decided, and no other image is begun."""
        self._decided = self.total = self.n = codes
        self.refresh()

    def update(self, n: float | None = 1) -> bool | None:
        """Counts codes that were decided."""
        refreshed = super().update(n)
        self._decided += int(n or 0)
        if self._callback is not None:
            self._callback(self._decided, int(self.total))
        return refreshed
