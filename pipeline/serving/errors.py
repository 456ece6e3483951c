"""Errors of requests, as OpenAI's interface has them."""


class RequestError(Exception):
    """A request cannot be served as it is.

    Attributes:
        status: the HTTP status.
        message: what was wrong and what to do.
        type: the kind of error, as OpenAI's clients know them.
        code: the error in one word; None: the type says enough.
        param: the field of the request that is wrong; None: none, or the whole.
        retry_after: seconds after which the same request may succeed; None: not by waiting.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.type = status, message, type
        self.code, self.param, self.retry_after = code, param, retry_after

    def to_json(self) -> dict[str, dict[str, str | None]]:
        """The body of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the response, beside those of its body."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class FileMissing(RequestError):
    """There is no such file, or it belongs to another key: a client cannot tell which."""

    def __init__(self, id: str):
        super().__init__(404, f"there is no file {id[:40]!r}; it may have expired: upload it again", code="not_found")
