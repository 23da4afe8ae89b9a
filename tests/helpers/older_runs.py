"""Finished runs as older versions left them."""

import json
from pathlib import Path

import yaml

from medseg_attack.runs.stored_files import HEADER_FILE, STUDY_FILE, Header, StoredStudy


def make_older(run: Path) -> None:
    """Leaves in a run's header, and in its study, those fields alone that their forms require."""
    for file, form in ((run / HEADER_FILE, Header), (run.parents[1] / STUDY_FILE, StoredStudy)):
        content = yaml.safe_load(file.read_text())
        kept = {name: content[name] for name, field in form.model_fields.items() if field.is_required()}
        file.write_text(json.dumps(kept))
