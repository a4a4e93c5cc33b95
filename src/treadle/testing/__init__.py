"""The public test kit: the contract of stores, a store that fails on purpose.

`StoreContract` is a test class that every store passes, ours and yours. `FaultyStore` (made by `fail_nth`) is for
anomaly loops. `ManualClock` stands still until a test moves it. `treadle.testing.store_model.StoreModel`, which needs
Hypothesis, runs random histories on a store.
"""

from __future__ import annotations

from treadle.testing.faulty_store import FaultyStore, fail_nth
from treadle.testing.manual_clock import ManualClock
from treadle.testing.store_contract import LimitsContract, StoreContract

__all__ = ["FaultyStore", "LimitsContract", "ManualClock", "StoreContract", "fail_nth"]
