"""Pushing models and data sets to a Hub that runs on this machine; see fake_hub.py."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_hub import TOKEN, FakeHub, Repository, fake_hub  # noqa: F401
from huggingface_hub import DatasetCard, ModelCard, constants
from safetensors.numpy import save_file

from data_prep.layout import write_dataset
from data_prep.posts import POSTS_FEATURES, Post, PostImage
from launch import hub
from launch.errors import InputError
from launch.published_files import find_published_files
from launch.scrub import REDACTED, redact, scrub

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
PUSHED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"} | {
    "README.md",
    "manifest.json",
    "scores.json",
    "config.yaml",
}


def measures(f1: float) -> dict:
    return {"precision": 0.7, "recall": 0.6, "f1": f1, "gold": 20, "predicted": 18, "correct": 12}


def write_export(folder: Path, **manifest_changes) -> Path:
    """A finished NER stage's folder, with all that must stay at home beside what may leave."""
    (folder / "checkpoints/step_10").mkdir(parents=True)
    (folder / "predictions").mkdir()
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    save_file({"classifier.weight": weights}, folder / "model.safetensors")
    save_file({"classifier.weight": weights}, folder / "checkpoints/step_10/model.safetensors")
    home = str(folder.parent.resolve())
    manifest = {
        "stage": "finetune/ner",
        "settings": {"output": str(folder.resolve()), "data": f"{home}/tmn", "head": "softmax", "seed": 3},
        "inputs": {"data": {"path": f"{home}/tmn", "sha256": "ab" * 32, "manifest": None}},
        "seeds": [3],
        "rows": None,
        "facts": {"note": f"read from {home}/tmn/data, not from https://example.org/a/b/c"},
        "versions": {"python": "3.11"},
        "machine": {"cores": 2},
        "wall_seconds": 12.5,
        "fingerprint": "cd" * 32,
        **manifest_changes,
    }
    convention = {"micro": measures(0.65), "by_type": {"PER": measures(0.65)}}
    split = {"conlleval": convention, "strict": convention, "words_truncated": 0, "tweets": 9}
    for name, value in {
        "manifest.json": manifest,
        "scores.json": {"validation": split, "test": split},
        "config.json": {"model_type": "bert", "id2label": {"0": "O"}, "_name_or_path": f"{home}/encoder"},
        "tokenizer.json": {"model": {"vocab": {"/": 0, "a": 1}}},
        "tokenizer_config.json": {"eos_token": "</s>", "name_or_path": f"{home}/encoder"},
    }.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(manifest["settings"]), encoding="utf-8")
    (folder / "vocab.txt").write_text("[PAD]\n/\na\n", encoding="utf-8")
    for name in (
        "predictions/test.jsonl predictions.jsonl metrics.jsonl pytorch_model.bin optimizer.pt state.pkl "
        "training_args.bin helper.py .plan.json events.log"
    ).split():
        (folder / name).write_text("private", encoding="utf-8")
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_export(tmp_path / "ner")


@pytest.fixture
def client(fake_hub: FakeHub, monkeypatch, tmp_path: Path) -> FakeHub:  # noqa: F811
    """The fake Hub, with huggingface_hub in this process pointed at it."""
    fake_hub.patch(monkeypatch, tmp_path / "home")
    return fake_hub


def run_push(server: FakeHub, home: Path, *arguments: str, token: str | None = TOKEN, **environment: str):
    command = [sys.executable, "-m", "launch.hub", *arguments]
    variables = server.environment(home, token) | environment
    return subprocess.run(command, env=variables, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=60)


def error_of(function, *arguments, **options) -> str:
    """The InputError's text; also checks that its traceback, as a user would see it, shows no token."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_push_uploads_the_export_and_nothing_else(fake_hub, export, tmp_path):  # noqa: F811
    done = run_push(fake_hub, tmp_path / "home", str(export), "tester/ner", "--private", HF_DEBUG="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{fake_hub.url}/tester/ner/commit/")

    repository = fake_hub.repositories["tester/ner"]
    assert repository.private
    assert set(repository.files) == PUSHED | {".gitattributes"}
    assert repository.files["model.safetensors"] == (export / "model.safetensors").read_bytes()
    assert repository.lfs_paths == {"model.safetensors"}
    for name in ("tokenizer.json", "vocab.txt"):
        assert repository.files[name] == (export / name).read_bytes()

    # Where things lay on this machine stays here; names, URLs and special tokens are kept.
    for name in PUSHED - {"model.safetensors"}:
        assert str(tmp_path) not in repository.files[name].decode(), name
    manifest = json.loads(repository.files["manifest.json"])
    assert manifest["settings"]["data"] == manifest["inputs"]["data"]["path"] == "tmn"
    assert manifest["facts"]["note"] == "read from data, not from https://example.org/a/b/c"
    assert yaml.safe_load(repository.files["config.yaml"])["output"] == "ner"
    assert json.loads(repository.files["tokenizer_config.json"]) == {"eos_token": "</s>", "name_or_path": "encoder"}
    assert json.loads(repository.files["config.json"])["_name_or_path"] == "encoder"

    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert {(r.dataset_split, r.metric_args["convention"]) for r in card.data.eval_results} == {
        (split, convention) for split in ("test", "validation") for convention in ("conlleval", "strict")
    }
    assert 'model="tester/ner"' in card.text

    # The token was sent in Authorization headers, to the Hub alone, and is nowhere else: debug log included.
    assert any(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in fake_hub.requests)
    assert not [text for text in fake_hub.texts_outside_authorization() if TOKEN in text]
    assert TOKEN not in done.stdout + done.stderr


def test_the_checking_call_makes_the_repository_before_training(client):
    assert hub.check_can_push("tester/new", private=True) == "tester/new"
    assert client.repositories["tester/new"].private
    assert hub.check_can_push("tester/new", private=True) == "tester/new"  # and is content when it is there
    assert hub.check_can_push("lab/shared") == "lab/shared"
    assert not client.repositories["lab/shared"].private


def test_a_bare_name_gets_the_users_namespace(client, export):
    assert hub.check_can_push("plain") == "tester/plain"
    hub.push_folder(export, "plain")
    assert 'model="tester/plain"' in client.repositories["tester/plain"].files["README.md"].decode()


def test_pushing_again_takes_away_what_would_shadow_the_new_files(client, export):
    client.repositories["tester/ner"] = old = Repository()
    old.files |= {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}", "old_model.py": b""}
    old.files |= {"figure.png": b"mine", "spiece.model": b"old tokenizer"}
    hub.push_folder(export, "tester/ner", commit_message=f"with {TOKEN}")
    assert set(old.files) == PUSHED | {".gitattributes", "figure.png"}
    assert old.messages == [f"with {REDACTED}"]
    # The same again changes nothing and is no error.
    hub.push_folder(export, "tester/ner")
    assert len(old.messages) == 1


def test_sharded_weights_and_code_of_our_own(client, export):
    content = (export / "model.safetensors").read_bytes()
    (export / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard in shards:
        (export / shard).write_bytes(content)
    (export / "model-of-another-run.safetensors").write_bytes(content)
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    auto_map = {"AutoModelForTokenClassification": "modeling_msb.Msb", "AutoTokenizer": ["tok.Slow", None]}
    (export / "config.json").write_text(json.dumps({"auto_map": auto_map}))

    assert "modeling_msb.py" in error_of(hub.push_folder, export, "tester/ner")
    assert client.requests == []  # an incomplete export is refused before anything is sent
    for module in ("modeling_msb.py", "tok.py"):
        (export / module).write_text("from transformers import PreTrainedModel\n")
    hub.push_folder(export, "tester/ner")
    files = client.repositories["tester/ner"].files
    code = {"modeling_msb.py", "tok.py", "helper.py"}
    assert set(files) == (PUSHED - {"model.safetensors"}) | {
        *shards,
        *code,
        "model.safetensors.index.json",
        ".gitattributes",
    }
    assert b"trust_remote_code=True" in files["README.md"]


@pytest.mark.parametrize("shard", ["../secret.safetensors", "missing.safetensors", "pytorch_model.bin"])
def test_an_index_cannot_name_files_that_are_no_shards_of_the_folder(export, shard):
    (export.parent / "secret.safetensors").write_text("private")
    (export / "model.safetensors").unlink()
    (export / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert shard in error_of(find_published_files, export)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "model.safetensors"])
def test_a_folder_that_is_no_finished_export_is_refused(export, name):
    (export / name).unlink()
    assert name in error_of(hub.push_folder, export, "tester/ner")


def test_a_damaged_manifest_is_named(export):
    (export / "manifest.json").write_text('{"stage": ')
    assert "manifest.json:1" in error_of(hub.push_folder, export, "tester/ner")


def test_a_file_that_holds_the_token_is_not_sent(client, export):
    (export / "vocab.txt").write_text(f"a\n{TOKEN}\n")
    assert "vocab.txt" in error_of(hub.push_folder, export, "tester/ner")
    assert not [text for text in client.texts_outside_authorization() if TOKEN in text]


def test_tokens_in_records_are_redacted(client, export):
    other = "hf_" + "x" * 34  # one this machine does not hold, recognised by its look
    write_export(export.parent / "second", facts={"command": f"HF_TOKEN={TOKEN} {other}", f"key {TOKEN}": [TOKEN]})
    hub.push_folder(export.parent / "second", "tester/ner")
    manifest = json.loads(client.repositories["tester/ner"].files["manifest.json"])
    assert manifest["facts"] == {"command": f"HF_TOKEN={REDACTED} {REDACTED}", f"key {REDACTED}": [REDACTED]}
    assert not [text for text in client.texts_outside_authorization() if TOKEN in text or other in text]


# --- data sets --------------------------------------------------------------------------------------------------------


def write_posts(folder: Path) -> Path:
    """A finished crawl with two photos, one of them of a rejected post, and files that must stay at home."""

    def post(name: str, photo: str, **options) -> dict:
        path = f"images/{photo[:2]}/{photo}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(photo.encode())
        return Post(
            name, f"text of {name}", source="x", images=(PostImage("https://x/1.jpg", path=path),), **options
        ).row()

    kept, left_out = post("1", "ab" * 32), post("2", "cd" * 32)
    escaping = Post("3", "text", source="x", images=(PostImage("u", path="../secret"), PostImage("v"))).row()
    rejected = [(left_out, "withheld")]
    write_dataset(folder, {"train": [kept, escaping]}, POSTS_FEATURES, "Posts", {"query": "cats"}, rejected=rejected)
    home = str(folder.parent.resolve())
    settings = {"output": f"{home}/posts", "token_file": f"{home}/keys/x", "query": "cats", "license": "other"}
    manifest = {
        "stage": "data_prep/crawl x",
        "settings": settings,
        "inputs": {},
        "rows": {"taken": 3, "kept": 2, "rejected": {"withheld": 1}},
        "facts": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    for name in ("state.json", "metrics.jsonl", ".lock", "notes.txt", "images/ab/more.jpg", "data/train.partial"):
        (folder / name).write_text("private")
    (folder.parent / "secret").write_text("private")
    return folder


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    return write_posts(tmp_path / "posts")


PUSHED_POSTS = {"README.md", "manifest.json", "config.yaml", ".gitattributes"} | {
    "data/train-00000-of-00001.parquet",
    f"images/ab/{'ab' * 32}.jpg",
}


def test_a_data_set_goes_without_its_rejected_posts(fake_hub, posts, tmp_path):  # noqa: F811
    done = run_push(fake_hub, tmp_path / "home", str(posts), "tester/posts", HF_DEBUG="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{fake_hub.url}/datasets/tester/posts/commit/")
    repository = fake_hub.repositories["datasets/tester/posts"]
    assert repository.private, "a data set is private unless asked for otherwise"
    assert set(repository.files) == PUSHED_POSTS
    for name in PUSHED_POSTS - {"README.md", "manifest.json", "config.yaml", ".gitattributes"}:
        assert repository.files[name] == (posts / name).read_bytes()
    records = b"".join(repository.files[name] for name in ("README.md", "manifest.json", "config.yaml")).decode()
    assert str(tmp_path) not in records
    assert json.loads(repository.files["manifest.json"])["settings"]["token_file"] == "x"

    card = DatasetCard(repository.files["README.md"].decode())
    assert [config["config_name"] for config in card.data.configs] == ["default"]
    assert (card.data.license, card.data.pretty_name) == ("other", "Posts")
    assert 'load_dataset("tester/posts")' in card.text and '"rejected")' not in card.text
    assert "- query: cats" in card.text and "| withheld | 1 |" in card.text
    assert "Rows that were left out (1) are not part of this repository." in card.text
    assert '"rejected")' in (posts / "README.md").read_text(), "the card at home still tells of them"

    assert not [text for text in fake_hub.texts_outside_authorization() if TOKEN in text]
    assert TOKEN not in done.stdout + done.stderr and "X's terms" not in done.stderr


def test_rejected_posts_go_where_asked_and_vanish_with_the_next_push(client, posts):
    hub.push_folder(posts, "tester/posts", private=True, with_rejected=True, license="cc-by-4.0")
    files = client.repositories["datasets/tester/posts"].files
    more = {"rejected/rejected-00000-of-00001.parquet", f"images/cd/{'cd' * 32}.jpg"}
    assert set(files) == PUSHED_POSTS | more
    card = DatasetCard(files["README.md"].decode())
    assert [config["config_name"] for config in card.data.configs] == ["default", "rejected"]
    assert card.data.license == "cc-by-4.0" and 'load_dataset("tester/posts", "rejected")' in card.text
    hub.push_folder(posts, "tester/posts", private=True)
    assert set(client.repositories["datasets/tester/posts"].files) == PUSHED_POSTS


def test_a_public_data_set_is_pushed_with_a_warning(fake_hub, posts, tmp_path):  # noqa: F811
    done = run_push(fake_hub, tmp_path / "home", str(posts), "tester/posts", "--public", "--license", "cc0-1.0")
    assert done.returncode == 0, done.stderr
    assert not fake_hub.repositories["datasets/tester/posts"].private
    assert done.stderr.count("X's terms") == 1
    assert b"license: cc0-1.0" in fake_hub.repositories["datasets/tester/posts"].files["README.md"]


def test_models_and_data_sets_of_one_name_are_two_repositories(client, export, posts):
    assert hub.check_can_push("tester/both", repository_type="dataset") == "tester/both"
    hub.push_folder(export, "tester/both")
    assert client.repositories["datasets/tester/both"].messages == []
    client.repositories["datasets/stranger/posts"] = Repository(writable=False)
    assert "may not write" in error_of(hub.check_can_push, "stranger/posts", repository_type="dataset")


def test_a_failed_push_of_a_data_set_says_how_to_push_it(client, posts):
    client.faults["commit"] = (403, '{"error": "quota used up"}')
    text = error_of(hub.push_folder, posts, "tester/posts", private=False, license="mit", with_rejected=True)
    assert f"The finished data set lies in {posts}; push it again with: " in text
    assert text.endswith(f"python -m launch.hub {posts} tester/posts --license mit --rejected --public")
    text = error_of(hub.push_folder, posts, "tester/more", private=True)
    assert text.endswith(f"python -m launch.hub {posts} tester/more")


def test_a_folder_without_shards_is_no_data_set(posts):
    (posts / "data/train-00000-of-00001.parquet").unlink()
    assert "no data/*.parquet" in error_of(hub.push_folder, posts, "tester/posts")


# --- refusals before training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", ["", "datasets/a/b", "a--b/c", "me/.hidden", "me/x.git", "me/wörter", "/tmp/model"])
def test_invalid_repository_ids(client, repo_id):
    assert "repository id" in error_of(hub.check_can_push, repo_id)
    assert client.requests == []


def test_no_token(client, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in error_of(hub.check_can_push, "tester/ner")
    assert client.requests == []


def test_offline_mode(client, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in error_of(hub.check_can_push, "tester/ner")
    assert client.requests == []


def test_offline_variable_in_a_process_of_its_own(fake_hub, export, tmp_path):  # noqa: F811
    done = run_push(fake_hub, tmp_path / "home", str(export), "tester/ner", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_wrong_token(client, monkeypatch):
    wrong = "hf_" + "w" * 34
    monkeypatch.setenv("HF_TOKEN", wrong)
    text = error_of(hub.check_can_push, "tester/ner")
    assert "does not accept the token" in text and wrong not in text
    assert client.repositories == {}


def test_read_only_token(client):
    client.role = "read"
    assert "read permission only" in error_of(hub.check_can_push, "tester/ner")
    assert client.repositories == {}


def test_a_namespace_that_is_not_ours(client):
    text = error_of(hub.check_can_push, "stranger/ner")
    assert "may not write" in text and "tester, lab" in text


def test_a_public_repository_of_somebody_else(client):
    client.repositories["stranger/ner"] = Repository(writable=False)  # create_repo(exist_ok=True) does not mind
    assert "may not write" in error_of(hub.check_can_push, "stranger/ner")


def test_a_fine_grained_token_for_another_repository(client):
    client.role = "fineGrained"
    client.repositories["tester/ner"] = Repository(writable=False)
    assert "may not write" in error_of(hub.check_can_push, "tester/ner")


def test_private_is_never_pushed_to_a_public_repository(client, export):
    client.repositories["tester/ner"] = Repository(private=False)
    assert "public already" in error_of(hub.check_can_push, "tester/ner", private=True)
    assert "public already" in error_of(hub.push_folder, export, "tester/ner", private=True)
    assert client.repositories["tester/ner"].messages == []


def test_a_server_without_the_write_check_leaves_it_to_the_upload(client):
    client.faults["auth_check"] = (404, "Not Found")
    assert hub.check_can_push("tester/ner") == "tester/ner"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((429, '{"error": "slow down"}'), "rate of requests"),
        ((500, '{"error": "broken"}'), "answered 500: broken"),
        ((200, "<html>Log in to this network</html>"), "does not answer like a Hub"),
    ],
)
def test_a_hub_that_is_ill_or_none(client, fault, told):
    client.faults["whoami"] = fault
    assert told in error_of(hub.check_can_push, "tester/ner")


@pytest.mark.parametrize("route", ["whoami", "create", "info", "auth_check"])
def test_a_server_that_repeats_the_token_does_not_get_it_printed(client, route):
    client.faults[route] = (418, '{"error": "you sent {authorization}"}')
    text = error_of(hub.check_can_push, "tester/ner")
    assert "418" in text and REDACTED in text


def test_unreachable_server_is_told_early(fake_hub, export, tmp_path, monkeypatch):  # noqa: F811
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound, and never listened on
        began = time.monotonic()
        done = run_push(fake_hub, tmp_path / "home", str(export), "tester/ner", HF_ENDPOINT=url)
        assert time.monotonic() - began < 20
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr and f"push it again with: python -m launch.hub {export}" in done.stderr
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr
    assert fake_hub.requests == []


def test_silent_server_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(hub, "CHECK_SECONDS", 0.3)
    client.delay_seconds = 2.0
    began = time.monotonic()
    assert "cannot be reached (ReadTimeout" in error_of(hub.check_can_push, "tester/ner")
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://example.org", "http://", "hub"])
def test_an_endpoint_that_is_no_address(fake_hub, monkeypatch, tmp_path, url):  # noqa: F811
    fake_hub.patch(monkeypatch, tmp_path, url=url)
    assert "HF_ENDPOINT" in error_of(hub.check_can_push, "tester/ner")


# --- failures while pushing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["validate_yaml", "tree", "preupload", "lfs_batch", "lfs_upload", "commit"])
def test_a_failed_push_says_where_the_model_is_and_how_to_push_it(client, export, route):
    client.faults[route] = (403, '{"error": "quota of {authorization} used up", "errors": [], "warnings": []}')
    text = error_of(hub.push_folder, export, "tester/ner")
    assert "quota of" in text
    assert text.endswith(f"push it again with: python -m launch.hub {export} tester/ner")
    assert client.repositories["tester/ner"].messages == []


def test_signed_upload_addresses_stay_out_of_the_log(client, export, caplog):
    caplog.set_level(logging.INFO)
    before = logging.getLogger("httpx2").level
    hub.push_folder(export, "tester/ner")
    assert "pushed 9 files" in caplog.text
    assert "X-Amz-Signature" not in caplog.text and TOKEN not in caplog.text
    assert logging.getLogger("httpx2").level == before


def test_nothing_is_left_in_the_temporary_folder_or_the_export(client, export, monkeypatch, tmp_path):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    before = sorted(export.rglob("*"))
    hub.push_folder(export, "tester/ner")
    client.faults["commit"] = (403, "{}")
    (export / "vocab.txt").write_text("changed")
    error_of(hub.push_folder, export, "tester/ner")
    assert os.listdir(tmp_path / "scratch") == []
    assert sorted(export.rglob("*")) == before


# --- what is taken out of texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"token {TOKEN}.", f"token {REDACTED}."),
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {REDACTED}"),
        ("authorization: bearer abc", f"authorization: bearer {REDACTED}"),
        ("hf_oauth_eyJhbGciOiJFZERTQSJ9.e30.abc-_x", REDACTED),
        ("api_org_" + "A" * 34, REDACTED),
        ("http://me:secret@proxy:3128/x", f"http://{REDACTED}@proxy:3128/x"),
        ("https://s3/x?X-Amz-Signature=0f0f&a=1", f"https://s3/x?X-Amz-Signature={REDACTED}&a=1"),
        ("calls hf_hub_download and hf_api", "calls hf_hub_download and hf_api"),
        ("http://host:80/a@b", "http://host:80/a@b"),
    ],
)
def test_redact(text, redacted):
    assert redact(text) == redacted


def test_redact_knows_the_tokens_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-look")
    (tmp_path / "token").write_text("stored-one\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert redact("not-of-the-usual-look stored-one given-one", ["given-one"]) == " ".join([REDACTED] * 3)
    monkeypatch.setenv("HF_TOKEN", "a")  # no token at all: do not garble the text
    assert redact("a banana") == "a banana"


@pytest.mark.parametrize(
    ("value", "scrubbed"),
    [
        ("/data/me/runs/ner", "ner"),
        ("/data/me/runs/ner/", "ner"),
        ("/data/Jane Doe/my model", "my model"),
        ("~/runs/ner", "ner"),
        (r"C:\Users\me\ner", "ner"),
        ("file:///data/me/ner", "ner"),
        ("/ner", "ner"),
        ("runs/ner", "runs/ner"),
        ("hub:google/bert_uncased_L-2_H-128_A-2@30b0a37", "hub:google/bert_uncased_L-2_H-128_A-2@30b0a37"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("and/or", "and/or"),
        ("</s>", "</s>"),
        ("/", "/"),
        ("1/2/3", "1/2/3"),
        ("--data=/data/me/tmn --lr 1e-4", "--data=tmn --lr 1e-4"),
        ("'/data/me/a.txt', 3 rows of /data/me/b.txt.", "'a.txt', 3 rows of b.txt."),
        ("/data/me/a was read from /data/me/b", "a was read from b"),
        (["/a/b", {"x": ("/a/c", 1, None, True, 0.5)}], ["b", {"x": ["c", 1, None, True, 0.5]}]),
        ({"/a/x": 1, "/b/x": 2}, {"x": 1, "x (2)": 2}),
    ],
)
def test_scrub(value, scrubbed):
    assert scrub(value) == scrubbed
