"""What a request is refused for, with the status that HTTP has for it."""

from layerscope.errors import LayerscopeError, PlacementError

UNEXPECTED = "Something went wrong inside layerscope; the terminal in which the server runs says what."
"""What a client is told of a fault of ours."""


class RequestError(LayerscopeError):
    """A request that is refused, in one sentence."""

    def __init__(self, sentence: str, *, status: int = 422) -> None:
        super().__init__(sentence)
        self.status = status


class QueueFullError(RequestError):
    """There is no room for another look."""


def status_of(error: LayerscopeError) -> int:
    """The status by which HTTP tells of an error: the request's fault, or that of the machine."""
    if isinstance(error, RequestError):
        return error.status
    return 503 if isinstance(error, PlacementError) else 422
