"""The key of requests that live sources send by `requests`."""

from __future__ import annotations

import requests


class BearerToken(requests.auth.AuthBase):
    """A key for each request, if there is one. Not a header: `requests` would replace it by what a .netrc has for the host."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The request with the key."""
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request
