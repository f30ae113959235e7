"""Pushing the finished folder of a stage, a model or a data set, to the Hugging Face Hub, with its card.

A stage calls :func:`check_can_push` before it works, so that a missing network, token or permission costs seconds,
not the work, and :func:`push_folder` when its folder is complete. A push that failed can be made again:

    python -m launch.hub runs/ner me/tweet-ner --private
    python -m launch.hub runs/corpus me/tweets

The Hub's address and token are found as ``huggingface_hub`` finds them (``HF_ENDPOINT``, ``HF_TOKEN``,
``hf auth login``). The token is no setting of ours, and no file, log line or error message shows it.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session, get_token, is_offline_mode
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OIDCError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from launch import dataset_card
from launch.errors import InputError
from launch.model_card import render_model_card
from launch.published_files import RepositoryType, find_published_files, read_json, stage_files
from launch.scrub import redact

CHECK_SECONDS = 10.0
"""Longest wait for one answer while checking."""

PUSH_SECONDS = 120.0
"""Longest silence of the server while pushing; an upload may take longer as long as it moves."""

DEFAULT_LICENSES: dict[RepositoryType, str] = {"model": "apache-2.0", "dataset": dataset_card.DEFAULT_LICENSE}

# The exception that both httpx and its successor httpx2 raise for whatever goes wrong on the wire.
TransportError = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")

logger = logging.getLogger("msb_ner")


def check_can_push(repo_id: str, private: bool = False, repository_type: RepositoryType = "model") -> str:
    """Make sure, before the work, that its result can be pushed to ``repo_id``, creating the repository.

    Call it on the main process. Returns the full repository id, ``namespace/name``. Raises :class:`InputError`, with
    the remedy, if the id is not valid, the Hub is not reachable, there is no token or a wrong one, the token may not
    write there, or the repository is public and ``private`` was asked for.
    """
    token = _preconditions(repo_id)
    with hub_calls(f"cannot push to {repo_id}", CHECK_SECONDS, token):
        return _prepare_repository(HfApi(token=token), repo_id, private, repository_type)


def push_folder(
    folder: Path,
    repo_id: str,
    private: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    with_rejected: bool = False,
) -> str:
    """Push the model or data set in a finished stage folder, its card rendered anew; returns the commit's URL.

    What leaves the machine is listed in :mod:`launch.published_files`; absolute paths in records are reduced to names.
    ``license`` is by the Hub's name, by default `DEFAULT_LICENSES`; ``with_rejected``: of a data set, the rejected
    rows, too.

    Raises :class:`InputError` if the folder is not that of a finished stage or the Hub does not take it.
    """
    folder = Path(folder)
    files = find_published_files(folder, with_rejected)
    manifest = read_json(folder / "manifest.json")
    token = _preconditions(repo_id)
    again = _command_to_push_again(folder, repo_id, private, license, with_rejected, files.repository_type)
    doing = f"push to {repo_id} failed"
    with hub_calls(doing, CHECK_SECONDS, token, again):
        api = HfApi(token=token)
        repo_id = _prepare_repository(api, repo_id, private, files.repository_type)
    license = license or DEFAULT_LICENSES[files.repository_type]
    if files.repository_type == "dataset":
        card = dataset_card.render_again(folder, license, repo_id, with_rejected)
    else:
        scores = read_json(folder / "scores.json") if (folder / "scores.json").is_file() else None
        config = read_json(folder / "config.json")
        card = render_model_card(manifest, scores, repo_id=repo_id, license=license, config=config)
    with tempfile.TemporaryDirectory(prefix="msb-ner-push-") as staging:
        stage_files(folder, files.names, card, Path(staging))
        with hub_calls(doing, PUSH_SECONDS, token, again):
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type=files.repository_type,
                folder_path=staging,
                delete_patterns=list(files.stale),
                commit_message=redact(commit_message or f"Push {manifest.get('stage', files.repository_type)}"),
            )
    logger.info("pushed %d files to %s", len(files.names) + 1, redact(commit.commit_url))
    return commit.commit_url


def warn_of_terms(repo_id: str) -> None:
    """Say, before a data set goes to a public repository, what stands against that."""
    logger.warning(
        "%s is to be public: X's terms allow to pass on the ids of posts, not their texts, and CoNLL-2003's text may "
        "not be passed on at all. Make it private unless you have the right to publish this data set.",
        repo_id,
    )


def main(argv: list[str] | None = None) -> int:
    """Push from the command line; returns 0, or 2 with the reason on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.hub", description="Push the model or the data set of a finished stage."
    )
    parser.add_argument("folder", type=Path, help="output folder of a finished stage")
    parser.add_argument("repo_id", help="namespace/name on the Hub; made if it is not there")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="make the repository private (a data set's default)")
    visibility.add_argument("--public", action="store_true", help="make the repository public (a model's default)")
    parser.add_argument("--license", help="licence, as the Hub names it (default: apache-2.0; of a data set, other)")
    parser.add_argument("--rejected", action="store_true", help="of a data set: push what was rejected, too")
    parser.add_argument("--message", default=None, help="commit message")
    arguments = parser.parse_args(argv)
    folder, repo_id = arguments.folder, arguments.repo_id
    try:
        is_dataset = find_published_files(folder).repository_type == "dataset"
        private = arguments.private or (is_dataset and not arguments.public)
        if is_dataset and not private:
            warn_of_terms(repo_id)
        url = push_folder(folder, repo_id, private, arguments.message, arguments.license, arguments.rejected)
    except InputError as error:
        print(f"launch/hub: error: {error}", file=sys.stderr)
        return 2
    print(url)
    return 0


def _command_to_push_again(
    folder: Path,
    repo_id: str,
    private: bool,
    license: str | None,
    with_rejected: bool,
    repository_type: RepositoryType,
) -> str:
    options = [*(["--license", license] if license not in (None, DEFAULT_LICENSES[repository_type]) else [])]
    options += ["--rejected"] if with_rejected else []
    if private != (repository_type == "dataset"):  # not what the command does by itself
        options.append("--private" if private else "--public")
    kind = "model" if repository_type == "model" else "data set"
    command = shlex.join(["python", "-m", "launch.hub", str(folder), repo_id, *options])
    return f"The finished {kind} lies in {folder}; push it again with: {command}"


def _preconditions(repo_id: str) -> str:
    """The token to use, after all that can be checked without the network."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no repository id: {_one_line(error)} Give namespace/name.") from None
    if is_offline_mode():
        raise InputError(
            f"cannot push to {repo_id}: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. "
            "Unset it, or leave out the push."
        )
    address = urlsplit(constants.ENDPOINT)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InputError(
            f"HF_ENDPOINT is {redact(constants.ENDPOINT)!r}, which is no address. Give one like https://huggingface.co"
        )
    try:
        token = get_token()
    except OIDCError as error:
        raise InputError(f"cannot push to {repo_id}: {_one_line(error)}") from None
    if not token:
        raise InputError(
            f"cannot push to {repo_id}: there is no Hub token. Set HF_TOKEN, or log in with: hf auth login"
        )
    return token


def _prepare_repository(api: HfApi, repo_id: str, private: bool, repository_type: RepositoryType) -> str:
    """Create the repository if need be and check that the token may write to it; returns ``namespace/name``."""
    account = _account(api)
    user = account.get("name", "")
    if "/" not in repo_id:
        repo_id = f"{user}/{repo_id}"
    namespaces = ", ".join([user, *(organisation.get("name", "") for organisation in account.get("orgs") or [])])
    no_permission = InputError(
        f"cannot push to {repo_id}: the token may not write there. It is {user}'s, who can write to: {namespaces}. "
        "Choose such a namespace, or a token with write permission for this one."
    )
    if (account.get("auth") or {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"cannot push to {repo_id}: {user}'s token has read permission only. "
            f"Make one with write permission at {constants.ENDPOINT}/settings/tokens"
        )
    try:
        api.create_repo(repo_id, private=private, repo_type=repository_type, exist_ok=True)
        repository = api.repo_info(repo_id, repo_type=repository_type, timeout=CHECK_SECONDS)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise no_permission from None
        raise
    if private and not repository.private:
        raise InputError(
            f"cannot push to {repo_id}: it is public already, and a private one was asked for. "
            "Make it private in its settings on the Hub, or choose another name."
        )
    # `create_repo` is content with a repository of somebody else, so ask whether this token may write.
    try:
        api.auth_check(repo_id, repo_type=repository_type, write=True)
    except HfHubHTTPError as error:
        # A plain 404 comes from a server that does not know this question; the upload will tell.
        if error.response.status_code in (401, 403) or isinstance(error, RepositoryNotFoundError):
            raise no_permission from None
        if error.response.status_code != 404:
            raise
    return repo_id


def _account(api: HfApi) -> dict:
    try:
        return api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                f"the Hub at {redact(api.endpoint)} does not accept the token. "
                "Correct HF_TOKEN (it goes before a stored token), or log in again with: hf auth login --force"
            ) from None
        raise


@contextmanager
def hub_calls(doing: str, seconds: float, token: str | None, remedy: str = "") -> Iterator[None]:
    """Bound each wait for the Hub, keep addresses out of the log, turn what goes wrong into :class:`InputError`."""
    # huggingface_hub's client waits forever unless told otherwise.
    session = get_session()
    waited, session.timeout = session.timeout, seconds
    # These log each request's address, and a signed upload address is a credential.
    wire_loggers = [logging.getLogger(name) for name in ("httpx", "httpx2")]
    levels = [wire_logger.level for wire_logger in wire_loggers]
    for wire_logger in wire_loggers:
        wire_logger.setLevel(logging.WARNING)
    try:
        yield
    except InputError as error:
        text = f"{error} {remedy}".strip()
        raise InputError(redact(text, [token] if token else [])) from None
    except (TransportError, OSError, RuntimeError, ValueError) as error:
        # `from None`: the traceback of the cause could print a request, and with it the token.
        raise InputError(redact(f"{doing}: {_explain(error)} {remedy}".strip(), [token] if token else [])) from None
    finally:
        session.timeout = waited
        for wire_logger, level in zip(wire_loggers, levels, strict=True):
            wire_logger.setLevel(level)


def _explain(error: BaseException) -> str:
    """What went wrong, in one sentence, with a remedy where there is one."""
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no Hub token. Set HF_TOKEN, or log in with: hf auth login."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 429:
            return "the Hub limits the rate of requests; wait some minutes and try again."
        return f"the Hub answered {status}: {_one_line(error.server_message or error)}."
    if isinstance(error, TransportError):
        return (
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {_one_line(error)}). "
            "Check the network, the proxy variables and HF_ENDPOINT."
        )
    if isinstance(error, json.JSONDecodeError):
        return f"{constants.ENDPOINT} does not answer like a Hub (no JSON). Check the network and HF_ENDPOINT."
    if error.__cause__ is not None:  # an upload's worker wraps the error that tells why
        return f"{_one_line(error)} {_explain(error.__cause__)}"
    return f"{type(error).__name__}: {_one_line(error)}."


def _one_line(error: object, limit: int = 300) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= limit else text[:limit] + "…"


if __name__ == "__main__":
    raise SystemExit(main())
