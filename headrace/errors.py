"""Every error that Headrace raises on purpose. A message states the rule, the value and the remedy.

HeadraceError
├── DefinitionError      a definition that cannot work (found by plan and apply)
├── SettingsError        a set-up that cannot work (a process refuses to start)
├── RequestError         a caller's mistake: HTTP 422
│   ├── UnknownNameError     a view, service, source or model that is not there: HTTP 404
│   └── AsOfError            `as_of` lies behind what the store already holds: HTTP 409
├── DataError            a file or table that cannot be read as asked
├── UnavailableError     a part that is down or not ready: HTTP 503
│   ├── StreamFullError      the stream's budget is used up: HTTP 503 with Retry-After
│   └── DeadlineError        no answer within the caller's deadline
├── ServerError          a server that failed on a request, or is none of ours (raised by the client)
├── StoreLostError       the store is behind what was seen before: start again from the markers
├── StreamGapError       the stream no longer has what comes next: headrace recover
├── LayoutsMovedError    a layout was completed that this process does not write: keep it up to date too
└── StaleCatalogError    an entry was written by a newer catalog than this process reads: load it
"""

__all__ = [
    "AsOfError",
    "DataError",
    "DeadlineError",
    "DefinitionError",
    "HeadraceError",
    "LayoutsMovedError",
    "RequestError",
    "ServerError",
    "SettingsError",
    "StaleCatalogError",
    "StoreLostError",
    "StreamFullError",
    "StreamGapError",
    "UnavailableError",
    "UnknownNameError",
]


class HeadraceError(Exception):
    """The root: catch it to catch everything that Headrace raises on purpose."""


class DefinitionError(HeadraceError):
    """A definition in `feature_repo/` that cannot work."""


class SettingsError(HeadraceError):
    """A set-up that cannot work."""


class RequestError(HeadraceError):
    """A request that its sender must change."""


class UnknownNameError(RequestError):
    """A name that the catalog does not hold."""


class AsOfError(RequestError):
    """A moment that the online store can no longer answer for."""


class DataError(HeadraceError):
    """A file or table that cannot be read as asked."""


class UnavailableError(HeadraceError):
    """A part that is down or not ready yet; the same request may work later."""


class StreamFullError(UnavailableError):
    """The stream has reached its budget; push again after the stated seconds."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(UnavailableError):
    """No answer came within the caller's deadline."""


class ServerError(HeadraceError):
    """A server that failed on a request, or answers what no server of ours does."""


class StoreLostError(HeadraceError):
    """The store holds less than this process has seen in it."""


class StreamGapError(HeadraceError):
    """The stream no longer has the events after a consumer's place, nor has the archive; `gap` says which."""

    def __init__(self, message: str, gap: object = None) -> None:
        super().__init__(message)
        self.gap = gap


class LayoutsMovedError(HeadraceError):
    """The store has a complete layout that this process does not keep up to date."""


class StaleCatalogError(HeadraceError):
    """This process works by an older catalog than the stream's producers."""
