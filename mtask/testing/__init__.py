"""What a backend is tested with, ours or anybody else's. Needs pytest; the machines need hypothesis.

    class TestMyQueue(MyFixtures, QueueContract): pass
    class TestMyTable(MyFixtures, TableContract): pass

`queue_contract` and `table_contract` say which fixtures there must be.
"""

from __future__ import annotations

from contextlib import suppress

with suppress(ImportError):
    import pytest

    # Else a failing assertion in here would not show its values.
    modules = ("lanes_contract", "queue_contract", "queue_steps", "results_contract", "table_contract")
    pytest.register_assert_rewrite(*(f"mtask.testing.{name}" for name in modules))
