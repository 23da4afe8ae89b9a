"""What a part does unless its settings are written, which is a part of what a stored result means."""

from pathlib import Path

from medseg_attack import registry


def test_settings_that_are_not_written_are_those_that_results_were_made_with() -> None:
    """Who changes a default changes what a spec means, and says so in `settings.txt`."""
    entries = [registry.find(name) for kind in ("attack", "ball") for name in registry.names(kind)]
    ours = [entry for entry in entries if entry.package.startswith("medseg_attack")]
    settings = Path(__file__).with_name("settings.txt").read_text().splitlines()
    assert [f"{entry.name}({registry.options(entry)})" for entry in ours] == settings
