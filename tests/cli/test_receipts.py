"""The verbs about receipts, on files and on runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

Project = Any  # tests/cli/conftest.py


@pytest.fixture
def ran(project: Project) -> Project:
    project.run("sums", "--input", "n=1", "--label", "team=web", id="one")
    project.run("fails", id="bad", code=1)
    return project


def test_show_tells_what_was_planned_and_what_became_of_it(ran: Project) -> None:
    good = ran.treadle("receipt", "show", "one").stdout
    bad = ran.treadle("receipt", "show", "bad").stdout

    assert good.startswith("Receipt of run one  [SUCCEEDED]")
    assert "2 steps: 2 succeeded; 2 stand" in good
    assert "labels team=web" in good
    assert 'result {"name":"n","sum":12}' in good or 'result {"sum":12,"name":"n"}' in good
    assert "not signed" in good
    assert "✗ fail" in bad
    assert "failed (root cause first): fail" in bad
    assert ran.json("receipt", "show", "bad")["run"]["status"] == "failed"


def test_export_writes_files_whose_names_cannot_collide(ran: Project) -> None:
    first = ran.json("receipt", "export", "one")
    ran.treadle("rewind", "one", "add-2", "--yes")
    second = ran.json("receipt", "export", "one")
    key = ran.json("show", "one")["key"]

    assert first["file"] == f"one-{key}-v{first['file'].split('-v')[1]}"
    assert first["file"] != second["file"]
    assert json.loads(Path(first["file"]).read_text())["hash"] == first["hash"]


def test_export_takes_the_form_of_the_file_and_keeps_the_document(ran: Project) -> None:
    ran.treadle("receipt", "export", "one", "r.yaml", "--context", "ticket=7")
    ran.treadle("receipt", "export", "r.yaml", "r.json")
    ran.treadle("receipt", "export", "r.json", "again.yaml")
    named = ran.json("receipt", "export", "r.json", "--form", "yaml", "--folder", ".")

    assert Path("again.yaml").read_bytes() == Path("r.yaml").read_bytes() == Path(named["file"]).read_bytes()
    assert json.loads(Path("r.json").read_text())["provenance"]["context"] == {"ticket": "7"}
    assert ran.treadle("receipt", "show", "r.yaml").stdout == ran.treadle("receipt", "show", "r.json").stdout


def test_an_id_that_could_be_a_path_stays_in_its_folder(ran: Project) -> None:
    ran.run("sums", "--input", "n=1", id="../a b/c")

    name = ran.json("receipt", "export", "../a b/c")["file"]

    assert name.startswith("a-b-c-")
    assert Path(name).exists()


def test_diff_tells_where_two_runs_differ(ran: Project) -> None:
    ran.run("sums", "--input", "n=2", id="two")
    ran.treadle("receipt", "export", "one", "one.json")

    told = ran.treadle("receipt", "diff", "one.json", "two", code=1).stdout
    facts = ran.json("receipt", "diff", "one.json", "two", code=1)

    assert "$.constants[0]" in told
    assert {"place": "$.run.steps[add].result.value", "left": 2, "right": 3} in facts
    assert not any("_at" in fact["place"] for fact in facts)
    assert "$.run.key" in ran.treadle("receipt", "diff", "one.json", "two", "--all", code=1).stdout
    assert ran.treadle("receipt", "diff", "one.json", "one").stdout == "no differences\n"


def test_a_receipt_is_run_again_only_when_it_is_reset(ran: Project) -> None:
    ran.treadle("receipt", "export", "one", "r.json")

    refused = ran.treadle("run", "r.json", "--module", ran.file.name, code=3).stderr
    again = ran.treadle("run", "r.json", "--module", ran.file.name, "--reset", "--id", "again")

    assert "receipt of run 'one' (succeeded)" in refused
    assert json.loads(again.stdout) == {"sum": 12, "name": "n"}


def test_a_receipt_is_shown_where_none_of_its_code_is(ran: Project, tmp_path: Path) -> None:
    ran.treadle("receipt", "export", "bad", "r.json")
    text = Path("r.json").read_text()
    ran.file.unlink()

    assert "✗ fail" in ran.treadle("receipt", "show", "r.json").stdout
    assert "fail" in ran.treadle("plan", "r.json").stdout
    assert ran.json("receipt", "show", "r.json") == json.loads(text)


def test_run_writes_the_receipt_whatever_became_of_it(project: Project) -> None:
    Path("kept").mkdir()

    good = project.run("sums", "--input", "n=1", "--receipt", "good.yaml", id="one")
    bad = project.run("fails", "--receipt", "kept", id="bad", code=1)
    [kept] = [file for file in Path("kept").iterdir() if file.name != "latest.json"]

    assert "receipt good.yaml  sha256:" in good.stderr
    assert json.loads(good.stdout) == {"sum": 12, "name": "n"}
    assert project.json("receipt", "show", "good.yaml")["run"]["status"] == "succeeded"
    assert f"receipt {kept}" in bad.stderr
    assert json.loads(kept.read_text())["run"]["status"] == "failed"
    refused = project.run("sums", "--input", "n=1", "--receipt", "none/r.json", id="two", code=2)
    assert "--receipt none/r.json: there is no folder none" in refused.stderr
    assert project.treadle("show", "two", code=4)


def test_a_project_keeps_receipts_in_its_folder_with_a_link_to_the_last(project: Project) -> None:
    Path("pyproject.toml").write_text('[tool.treadle]\nreceipts = "kept/receipts"\n')

    project.run("sums", "--input", "n=1", id="one")
    project.run("fails", id="bad", code=1)
    project.run("sums", "--input", "n=2", "--receipt", "other/", id="two")

    assert len([*Path("kept/receipts").iterdir()]) == 3
    latest = project.json("receipt", "show", "kept/receipts/latest.json")["run"]
    assert (latest["id"], latest["status"]) == ("bad", "failed")
    assert project.json("receipt", "show", "other/latest.json")["run"]["id"] == "two"
    assert project.treadle("receipt", "verify", "kept/receipts/latest.json", "--allow-unsigned").stdout.startswith(
        "unsig"
    )


# -- signatures --------------------------------------------------------------------------------------------------------


def new_key(folder: Path, name: str, passphrase: str = "") -> None:
    key = Ed25519PrivateKey.generate()
    lock = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    (folder / name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))


@pytest.fixture
def signed(ran: Project) -> Project:
    new_key(ran.folder, "key")
    ran.treadle("receipt", "export", "one", "r.json")
    ran.treadle("receipt", "sign", "r.json", "--key", "key", "--public", "key.pub")
    return ran


def test_verify_tells_valid_unsigned_invalid_and_missing(signed: Project) -> None:
    signed.treadle("receipt", "export", "one", "plain.json")
    new_key(signed.folder, "other")
    signed.treadle("receipt", "sign", "r.json", "--key", "other", "--to", "others.json", "--public", "other.pub")
    Path("edited.json").write_text(Path("r.json").read_text().replace('"succeeded"', '"failed"'))

    def verified(file: str, *args: str, code: int = 0) -> str:
        return str(signed.treadle("receipt", "verify", file, "--trust", "key.pub", *args, code=code).stdout)

    assert verified("r.json").startswith("valid: r.json is signed by SHA256:")
    assert verified("plain.json", code=6).startswith("unsigned: ")
    assert verified("plain.json", "--allow-unsigned").startswith("unsigned: ")
    assert verified("edited.json", "--allow-unsigned", code=6).startswith("invalid: ")
    assert verified("others.json", code=6).startswith("invalid: ")
    assert verified("others.json", "--trust", "other.pub").startswith("valid: ")
    assert verified("none.json", code=4) == "missing: none.json does not exist\n"
    assert signed.json("receipt", "verify", "edited.json", code=6)["reason"] == "checksum"


def test_trusted_keys_come_from_the_project(signed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Path("key.pub").read_text().strip()
    inner = signed.folder / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)

    signed.treadle("receipt", "verify", "../r.json", code=6)
    for key in ("key.pub", line):
        (signed.folder / "pyproject.toml").write_text(f'[tool.treadle]\ntrusted_keys = ["{key}"]\n')
        assert signed.treadle("receipt", "verify", "../r.json").stdout.startswith("valid")


def test_an_encrypted_key_asks_or_looks_in_the_environment(signed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    new_key(signed.folder, "locked", "secret")
    line = ("receipt", "sign", "r.json", "--key", "locked", "--to", "again.json")

    assert "TREADLE_KEY_PASSPHRASE" in signed.treadle(*line, code=6).stderr
    signed.treadle(*line, "--ask", stdin="secret\n")
    monkeypatch.setenv("TREADLE_KEY_PASSPHRASE", "secret")
    signed.treadle(*line)

    assert len(json.loads(Path("again.json").read_text())["signature"]["signatures"]) == 2


def test_a_signature_is_shown_and_exported_as_an_envelope(signed: Project) -> None:
    signed.treadle("receipt", "export", "r.json", "r.dsse", "--envelope")
    envelope = json.loads(Path("r.dsse").read_text())

    assert envelope == json.loads(Path("r.json").read_text())["signature"]
    assert "signed by SHA256:" in signed.treadle("receipt", "show", "r.json").stdout
    signed.treadle("receipt", "export", "one", "plain.json")
    assert "is not signed" in signed.treadle("receipt", "export", "plain.json", "--envelope", code=2).stderr


def test_a_signed_plan_runs_like_any_other(signed: Project) -> None:
    signed.treadle("plan", signed.target("sums"), "--input", "n=5", "--save", "plan.yaml")
    signed.treadle("receipt", "sign", "plan.yaml", "--key", "key")

    assert signed.treadle("receipt", "verify", "plan.yaml", "--trust", "key.pub").stdout.startswith("valid")
    assert json.loads(signed.treadle("run", "plan.yaml", "--module", signed.file.name).stdout)["sum"] == 16


def test_a_document_that_was_edited_is_not_signed(signed: Project) -> None:
    text = Path("r.json").read_text().replace('"succeeded"', '"failed"')
    Path("edited.json").write_text(text)

    assert (
        "changed after it was written"
        in signed.treadle("receipt", "sign", "edited.json", "--key", "key", code=6).stderr
    )
    assert Path("edited.json").read_text() == text


def test_what_is_not_there_is_said(ran: Project) -> None:
    assert "there is no run 'none'" in ran.treadle("receipt", "show", "none", code=4).stderr
    assert "there is no run 'none.json'" in ran.treadle("receipt", "show", "none.json", code=4).stderr
    Path("cut.json").write_text('{"format": "treadle.plan/1", "run": {')
    assert "cut.json:1:38: the text ends in the middle" in ran.treadle("receipt", "show", "cut.json", code=3).stderr
