"""A plan in a file, the receipt of its run, and a signature: what was reviewed is what ran, unchanged since.

Needs the extra `sign`: pip install 'treadle[sign]'.
"""

import tempfile
from decimal import Decimal
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from treadle import (
    ChecksumError,
    connect,
    keep_receipt,
    load_document,
    plan_document,
    planned_of,
    save_document,
    sign_document,
    step,
    verify_document,
    workflow,
)


@step
def price(items: int, each: Decimal) -> Decimal:
    return items * each


@step
def charge(amount: Decimal, card: str) -> str:
    if not card:
        raise ValueError("no card")
    return f"charged {amount}"


@workflow
def order(items: int, card: str) -> str:
    return charge.bind(price.bind(items, Decimal("1.10")), card)


def make_key(folder: Path) -> tuple[Path, Path]:
    """What `ssh-keygen -t ed25519 -f key` makes."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / "key", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return private, public


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        private, public = make_key(folder)

        # Plan here, with a note of why ...
        plan = save_document(plan_document(order.plan(3, "4711"), context={"ticket": "42"}), folder / "plan.yaml")
        print(plan.read_text(encoding="utf-8").splitlines()[0], "...")

        # ... run there. The arguments come back as what they were, the Decimal included.
        with connect("memory://") as app:
            run = app.start(planned_of(load_document(plan)), id="order-17")
            print("result:", run.result())
            receipt = run.receipt()

            # A failed run has a receipt too.
            failed = app.start(order, 3, "", id="order-18")
            failed.wait()
            keep_receipt(receipt, folder / "receipts")
            keep_receipt(failed.receipt(), folder / "receipts")
            # A link to the one that was kept last.
            told = load_document(folder / "receipts" / "latest.json").run
            assert told is not None
            print("order-18:", told.status, told.failures, told.summary.outcomes, "standing:", told.summary.standing)

        # Sign it. The file is a document like any other; the signature is a DSSE envelope inside.
        path = save_document(sign_document(receipt, private), folder / "receipt.json")
        print("verified:", verify_document(path, [public]).status)
        print("by a stranger:", verify_document(path, []).reason)

        # Whatever is changed, be it one character, is found.
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("charged 3.30", "charged 0.30"), encoding="utf-8")
        print("edited:", verify_document(path, [public]).reason)
        try:
            load_document(path)
        except ChecksumError as error:
            print("refused:", error.code)


if __name__ == "__main__":
    main()
