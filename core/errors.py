"""Every error the service means to show someone.

    TunewrightError                      500  internal_error
    ├── InvalidRequestError              400  invalid_request_error
    │   ├── InvalidDatasetError          400  invalid_dataset
    │   │   └── RowError (core.datasets.row_errors), which knows its row
    │   ├── InvalidModelError            400  invalid_model
    │   └── PlanDoesNotFitError          400  plan_does_not_fit
    ├── AuthenticationError              401  invalid_api_key
    │   └── WrongPasswordError           401  wrong_password
    ├── InsufficientCreditsError         402  insufficient_credits
    ├── PermissionDeniedError            403  permission_denied
    ├── NotFoundError                    404  not_found
    │   ├── ModelNotFoundError           404  model_not_found
    │   └── UnknownCodeError             404  code_unknown
    ├── MethodNotAllowedError            405  method_not_allowed
    ├── SlowRequestError                 408  request_too_slow
    ├── ConflictError                    409  conflict
    │   └── NotYetError                  409  not_yet
    ├── FileTooLargeError                413  file_too_large
    ├── UnsupportedMediaTypeError        415  unsupported_media_type
    ├── UnknownHostError                 421  unknown_host
    ├── HeadTooLargeError                431  request_head_too_large
    ├── RateLimitError                   429  rate_limit_exceeded
    ├── LimitReachedError                429  limit_reached
    ├── ServiceUnavailableError          503  service_unavailable
    │   ├── DatabaseFullError            507  disk_full
    │   └── StoreError                   503  store_unavailable
    │       └── StoreFullError           507  disk_full
    ├── InvalidSettingsError             500  invalid_settings
    ├── TrainingError                    500  training_failed
    └── StaleLeaseError                  409  stale_lease

Each carries the HTTP status and OpenAI's error `type` as class attributes and a stable snake_case `code`, which an
instance may narrow. The message says what happened, the number involved and what to do next.
"""

from dataclasses import dataclass

__all__ = [
    "AuthenticationError",
    "ConflictError",
    "DatabaseFullError",
    "ErrorBody",
    "FileTooLargeError",
    "HeadTooLargeError",
    "InsufficientCreditsError",
    "InvalidDatasetError",
    "InvalidModelError",
    "InvalidRequestError",
    "InvalidSettingsError",
    "LimitReachedError",
    "MethodNotAllowedError",
    "ModelNotFoundError",
    "NotFoundError",
    "NotYetError",
    "PermissionDeniedError",
    "PlanDoesNotFitError",
    "RateLimitError",
    "ServiceUnavailableError",
    "SlowRequestError",
    "StaleLeaseError",
    "StoreError",
    "StoreFullError",
    "TrainingError",
    "TunewrightError",
    "UnknownCodeError",
    "UnknownHostError",
    "UnsupportedMediaTypeError",
    "WrongPasswordError",
]


@dataclass(frozen=True)
class ErrorBody:
    """The error object of the wire, and what a failed job stores as its `error`."""

    message: str
    type: str
    param: str | None
    code: str


class TunewrightError(Exception):
    """Base of all expected errors. Picklable, so that it survives a process boundary."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.code, self.param)

    @property
    def body(self) -> ErrorBody:
        """The error as the wire shows it."""
        return ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)


def _rebuild(cls: type[TunewrightError], message: str, code: str, param: str | None) -> TunewrightError:
    return cls(message, code=code, param=param)


class InvalidRequestError(TunewrightError):
    """Raised when a request cannot mean anything: a missing field, a value out of range, a contradiction."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request_error"


class InvalidDatasetError(InvalidRequestError):
    """Raised when a data set cannot be read or would train nothing. Names the row or line."""

    code = "invalid_dataset"


class InvalidModelError(InvalidRequestError):
    """Raised when a base model exists but cannot be used: pickle weights, no tokenizer, unknown architecture."""

    code = "invalid_model"


class PlanDoesNotFitError(InvalidRequestError):
    """Raised when no method fits any device. Names the smallest change or GPU that would."""

    code = "plan_does_not_fit"


class AuthenticationError(TunewrightError):
    """Raised when the API key or session is missing, unknown, expired or revoked."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class WrongPasswordError(AuthenticationError):
    """Raised when an e-mail address and a password do not belong together. Counted: passwords can be guessed."""

    code = "wrong_password"


class InsufficientCreditsError(TunewrightError):
    """Raised when a quote is larger than the available balance."""

    status = 402
    type = "insufficient_quota"
    code = "insufficient_credits"


class PermissionDeniedError(TunewrightError):
    """Raised when the caller is known but may not do this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFoundError(TunewrightError):
    """Raised when an object does not exist or belongs to another organization: the two look the same."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFoundError(NotFoundError):
    """Raised when a model id is neither in the catalogue, nor on the hub, nor under the models folder."""

    code = "model_not_found"


class UnknownCodeError(NotFoundError):
    """Raised when there is no such credit code. Counted: codes can be guessed."""

    code = "code_unknown"


class MethodNotAllowedError(TunewrightError):
    """Raised when an address is asked in a way that it does not answer."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class SlowRequestError(TunewrightError):
    """Raised when a body stops arriving, or arrives so slowly that it holds a place others need."""

    status = 408
    type = "invalid_request_error"
    code = "request_too_slow"


class ConflictError(TunewrightError):
    """Raised when the object is not in a state that allows the request. Retrying alone does not help."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class NotYetError(ConflictError):
    """Raised when what a request needs is being made. Asking again in a while gets it."""

    code = "not_yet"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after_seconds: int = 1
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_later, (type(self), self.message, self.code, self.param, self.retry_after_seconds)


class FileTooLargeError(TunewrightError):
    """Raised while streaming, at the first byte above the limit. Nothing is kept."""

    status = 413
    type = "invalid_request_error"
    code = "file_too_large"


class UnsupportedMediaTypeError(TunewrightError):
    """Raised when the body is not of the content type the route reads."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class UnknownHostError(TunewrightError):
    """Raised when a request is for a host that this service does not answer to."""

    status = 421
    type = "invalid_request_error"
    code = "unknown_host"


class HeadTooLargeError(TunewrightError):
    """Raised when a request's line or headers are longer than anything this service reads."""

    status = 431
    type = "invalid_request_error"
    code = "request_head_too_large"


class RateLimitError(TunewrightError):
    """Raised when a key, an address or an account asks too often. Retrying later helps."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after_seconds: int = 1
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_later, (type(self), self.message, self.code, self.param, self.retry_after_seconds)


def _rebuild_later(
    cls: type[NotYetError] | type[RateLimitError], message: str, code: str, param: str | None, retry_after_seconds: int
) -> TunewrightError:
    return cls(message, code=code, param=param, retry_after_seconds=retry_after_seconds)


class LimitReachedError(TunewrightError):
    """Raised when an organization is at one of its limits, which the message names. Retrying alone does not help."""

    status = 429
    type = "insufficient_quota"
    code = "limit_reached"


class ServiceUnavailableError(TunewrightError):
    """Raised when a part of the service is away: no worker, no broker, no database."""

    status = 503
    type = "server_error"
    code = "service_unavailable"


class StoreError(ServiceUnavailableError):
    """Raised when the artifact store cannot be read or written."""

    code = "store_unavailable"


class StoreFullError(StoreError):
    """Raised when the artifact store's disk has no room for an object; nothing of it was kept."""

    status = 507
    code = "disk_full"


class DatabaseFullError(ServiceUnavailableError):
    """Raised when the database's disk has no room for a change; nothing of it was made."""

    status = 507
    code = "disk_full"


class InvalidSettingsError(TunewrightError):
    """Raised when a process's environment cannot be its settings. The message has a line for each thing wrong."""

    code = "invalid_settings"


class TrainingError(TunewrightError):
    """Raised when a run cannot go on. Its body becomes the job's `error`."""

    code = "training_failed"


class StaleLeaseError(TunewrightError):
    """Raised when a worker writes under a lease it no longer holds. Its write is thrown away."""

    status = 409
    code = "stale_lease"
