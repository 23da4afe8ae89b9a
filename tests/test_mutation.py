"""What `make mutate` changes is what the tests run."""

import mutate

from medseg_attack.stats.alarms import auroc


def test_functions_are_found_though_what_is_loaded_is_kept_from_the_search_for_garbage() -> None:
    assert [auroc] in mutate.functions_of(["medseg_attack/stats/alarms.py"]).values()
