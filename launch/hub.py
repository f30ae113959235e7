"""Pushing a finished training stage to the Hugging Face Hub, with its model card.

A stage calls :func:`check_can_push` before it trains, so that a missing network, token or permission costs seconds,
not the training, and :func:`push_folder` when its folder is complete. A push that failed can be made again:

    python -m launch.hub runs/ner me/tweet-ner --private

The Hub's address and token are found as ``huggingface_hub`` finds them (``HF_ENDPOINT``, ``HF_TOKEN``,
``hf auth login``). The token is no setting of ours, and no file, log line or error message shows it.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from huggingface_hub import HfApi, constants, get_session, get_token, is_offline_mode
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OIDCError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from launch.errors import InputError
from launch.model_card import render_model_card
from launch.scrub import known_secrets, redact, scrub

CHECK_SECONDS = 10.0
"""Longest wait for one answer while checking."""

PUSH_SECONDS = 120.0
"""Longest silence of the server while pushing; an upload may take longer as long as it moves."""

DEFAULT_LICENSE = "apache-2.0"

TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt vocab.json merges.txt "
    "bpe.codes spiece.model sentencepiece.bpe.model".split()
)
# JSON of ours or of transformers, whose strings may hold paths; a vocabulary is left as it is.
SCRUBBED_JSON = ("manifest.json", "scores.json", "config.json", "tokenizer_config.json")
SINGLE_WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# What an earlier push may have left that would shadow this one's files: a shard, an index, a module, a tokenizer.
OWN_PATTERNS = ["model*.safetensors", WEIGHTS_INDEX, "*.py", *TOKENIZER_FILES, "scores.json"]

# The exception that both httpx and its successor httpx2 raise for whatever goes wrong on the wire.
TransportError = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")

logger = logging.getLogger("msb_ner")


def check_can_push(repo_id: str, private: bool = False) -> str:
    """Make sure, before training, that the model can be pushed to ``repo_id``, creating the repository.

    Call it on the main process. Returns the full repository id, ``namespace/name``. Raises :class:`InputError`, with
    the remedy, if the id is not valid, the Hub is not reachable, there is no token or a wrong one, the token may not
    write there, or the repository is public and ``private`` was asked for.
    """
    token = _preconditions(repo_id)
    with _hub_calls(f"cannot push to {repo_id}", CHECK_SECONDS, token):
        return _prepare_repository(HfApi(token=token), repo_id, private)


def push_folder(
    folder: Path,
    repo_id: str,
    private: bool = False,
    commit_message: str | None = None,
    license: str = DEFAULT_LICENSE,
) -> str:
    """Push the model in a finished stage folder, with a card rendered from its manifest; returns the commit's URL.

    Only these leave the machine: configuration, safetensors weights, tokenizer, card, ``manifest.json``,
    ``scores.json`` and ``config.yaml`` (absolute paths reduced to names), and, where ``config.json`` has an
    ``auto_map``, the model's code. Never checkpoints, pickles, or predictions, which hold tweets.

    Raises :class:`InputError` if the folder is not a finished export or the Hub does not take it.
    """
    folder = Path(folder)
    names = export_files(folder)
    manifest, scores = _read_json(folder / "manifest.json"), _read_optional_json(folder / "scores.json")
    token = _preconditions(repo_id)
    again = f"The finished model lies in {folder}; push it again with: python -m launch.hub {folder} {repo_id}" + (
        " --private" if private else ""
    )
    doing = f"push to {repo_id} failed"
    with _hub_calls(doing, CHECK_SECONDS, token, again):
        api = HfApi(token=token)
        repo_id = _prepare_repository(api, repo_id, private)
    card = render_model_card(
        manifest, scores, repo_id=repo_id, license=license, config=_read_json(folder / "config.json")
    )
    with tempfile.TemporaryDirectory(prefix="msb-ner-push-") as staging:
        stage_files(folder, names, card, Path(staging))
        with _hub_calls(doing, PUSH_SECONDS, token, again):
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=staging,
                allow_patterns=[*names, "README.md"],
                delete_patterns=OWN_PATTERNS,
                commit_message=redact(commit_message or f"Push {manifest.get('stage', 'model')}"),
            )
    logger.info("pushed %d files to %s", len(names) + 1, redact(commit.commit_url))
    return commit.commit_url


def export_files(folder: Path) -> list[str]:
    """Names of the files of ``folder`` that may be pushed; :class:`InputError` if it is no complete export."""
    for name, remedy in (
        ("manifest.json", "Give the output folder of a finished stage."),
        ("config.json", "Give the output folder of a training stage."),
    ):
        if not (folder / name).is_file():
            raise InputError.at(folder, None, f"there is no {name}", remedy)
    names = ["manifest.json", "config.json", *_weight_files(folder), *_code_files(folder)]
    names += [n for n in (*TOKENIZER_FILES, "scores.json", "config.yaml") if (folder / n).is_file()]
    return names


def stage_files(folder: Path, names: list[str], card: str, staging: Path) -> None:
    """Lay out in ``staging`` what is pushed: scrubbed records, the card, the other files as they are.

    Raises :class:`InputError` if one of the files that are pushed as they are holds a credential of this machine.
    """
    secrets = [secret.encode() for secret in known_secrets()]
    for name in names:
        source, target = folder / name, staging / name
        if name in SCRUBBED_JSON:
            text = json.dumps(scrub(_read_json(source)), indent=2, ensure_ascii=False) + "\n"
            target.write_text(text, encoding="utf-8")
        elif name == "config.yaml":
            settings = scrub(yaml.safe_load(source.read_text(encoding="utf-8")))
            target.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        elif name.endswith(".safetensors"):
            target.symlink_to(source.resolve())
        else:
            content = source.read_bytes()
            if any(secret in content for secret in secrets):
                raise InputError.at(source, None, "it holds your Hub token", "Take the token out of this file.")
            shutil.copyfile(source, target)
    (staging / "README.md").write_text(card, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Push from the command line; returns 0, or 2 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m launch.hub", description="Push a finished training stage.")
    parser.add_argument("folder", type=Path, help="output folder of a finished training stage")
    parser.add_argument("repo_id", help="namespace/name on the Hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--license", default=DEFAULT_LICENSE, help="licence of the weights, as the Hub names it")
    parser.add_argument("--message", default=None, help="commit message")
    arguments = parser.parse_args(argv)
    try:
        url = push_folder(arguments.folder, arguments.repo_id, arguments.private, arguments.message, arguments.license)
    except InputError as error:
        print(f"launch/hub: error: {error}", file=sys.stderr)
        return 2
    print(url)
    return 0


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


def _prepare_repository(api: HfApi, repo_id: str, private: bool) -> str:
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
        api.create_repo(repo_id, private=private, exist_ok=True)
        repository = api.model_info(repo_id, timeout=CHECK_SECONDS)
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
        api.auth_check(repo_id, write=True)
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
def _hub_calls(doing: str, seconds: float, token: str, remedy: str = "") -> Iterator[None]:
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
        raise InputError(redact(text, [token])) from None
    except (TransportError, OSError, RuntimeError, ValueError) as error:
        # `from None`: the traceback of the cause could print a request, and with it the token.
        raise InputError(redact(f"{doing}: {_explain(error)} {remedy}".strip(), [token])) from None
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


def _weight_files(folder: Path) -> list[str]:
    if (folder / SINGLE_WEIGHTS).is_file():
        return [SINGLE_WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise InputError.at(folder, None, f"there is no {SINGLE_WEIGHTS}", "Only safetensors weights are pushed.")
    shards = sorted(set(_read_json(folder / WEIGHTS_INDEX)["weight_map"].values()))
    for shard in shards:
        # The name comes from a file: it must not lead out of the folder, or to a pickle.
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not (folder / shard).is_file():
            raise InputError.at(folder / WEIGHTS_INDEX, None, f"its shard {shard} is not there", "Export again.")
    return [WEIGHTS_INDEX, *shards]


def _code_files(folder: Path) -> list[str]:
    """The model's own modules: all of the folder's ``*.py`` if ``config.json`` has an ``auto_map``, else none."""
    auto_map = _read_json(folder / "config.json").get("auto_map") or {}
    references = [r for value in auto_map.values() for r in (value if isinstance(value, list) else [value]) if r]
    for reference in references:
        module = reference.rpartition(".")[0]
        if "--" not in reference and not (folder / f"{module}.py").is_file():  # "--": code of another repository
            raise InputError.at(folder, None, f"config.json names {module}.py, which is not there", "Export again.")
    return sorted(path.name for path in folder.glob("*.py")) if auto_map else []


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError.at(
            path, getattr(error, "lineno", None), "this is not JSON", "Make the folder again."
        ) from None


def _read_optional_json(path: Path) -> dict | None:
    return _read_json(path) if path.is_file() else None


if __name__ == "__main__":
    raise SystemExit(main())
