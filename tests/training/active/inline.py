"""An executor that does its work at once, and can be interrupted."""

from concurrent.futures import Executor, Future


class Inline(Executor):
    """Runs every function when it is handed over; after `most` of them comes an interruption."""

    def __init__(self, most: int | None = None) -> None:
        self.done, self.most = 0, most

    def submit(self, function, *arguments, **keywords):
        if self.most is not None and self.done >= self.most:
            raise KeyboardInterrupt
        self.done += 1
        future: Future = Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future
