"""The contract of every store, as a test class: each promise of `treadle.store.base` is a test's name.

A store is tested by subclassing, with a fixture `make_store` that returns a factory; each call of the factory
opens another handle on the same, initially empty data (for a file: another connection to the same file):

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            with contextlib.ExitStack() as stack:
                def make() -> Store:
                    store = MyStore(tmp_path / "runs.db")
                    store.open()
                    stack.callback(store.close)
                    return store
                yield make

`treadle.testing.store_model` holds the second half of the contract: random histories against a model.
For readable failures call `pytest.register_assert_rewrite("treadle.testing")` in your `conftest.py`.
"""

from __future__ import annotations

from treadle.testing.contract_calls import CallsContract
from treadle.testing.contract_dropping import DroppingContract
from treadle.testing.contract_holds import HoldsContract
from treadle.testing.contract_keys import KeysContract, TurnsContract
from treadle.testing.contract_kit import MakeStore
from treadle.testing.contract_limits import ConcurrencyContract, DefinitionsContract, RateContract, TargetsContract
from treadle.testing.contract_names import NamesContract
from treadle.testing.contract_postponing import PostponingContract
from treadle.testing.contract_reads import FindContract, ListsContract, LoadContract
from treadle.testing.contract_runs import (
    AppendsContract,
    DeletionContract,
    HostileIdsContract,
    PayloadsContract,
)
from treadle.testing.contract_sessions import (
    ElectionsContract,
    InboxContract,
    IsolationContract,
    OwnersContract,
    SessionsContract,
    WakesContract,
)
from treadle.testing.contract_tasks import ClaimsContract, HandOverContract, ReportsContract

__all__ = ["LimitsContract", "MakeStore", "StoreContract"]


class StoreContract(
    AppendsContract,
    PayloadsContract,
    DeletionContract,
    HostileIdsContract,
    HandOverContract,
    ClaimsContract,
    ReportsContract,
    PostponingContract,
    CallsContract,
    NamesContract,
    HoldsContract,
    SessionsContract,
    ElectionsContract,
    InboxContract,
    OwnersContract,
    WakesContract,
    IsolationContract,
    FindContract,
    LoadContract,
    ListsContract,
):
    """All promises; subclass it with a fixture `make_store`."""


class LimitsContract(
    ConcurrencyContract,
    RateContract,
    KeysContract,
    TurnsContract,
    DefinitionsContract,
    DroppingContract,
    TargetsContract,
):
    """The promises of limits and targets, for stores that keep them; beside `StoreContract`, with the same fixture."""
