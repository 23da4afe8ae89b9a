"""docs/security.md lists every place that reads files, and says of each reader what it is asked not to do."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import medseg_attack

PACKAGE = Path(medseg_attack.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "security.md").read_text(encoding="utf-8")
READERS = {
    "torch.load",
    "torch.jit.load",
    "torch.export.load",
    "np.load",
    "json.load",
    "json.loads",
    "yaml.safe_load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "pydicom.dcmread",
    "nibabel.load",
    "Image.open",
    "tifffile.imread",
    "pq.ParquetFile",
    "pq.read_table",
    "safe_open",
    "load_file",
    "onnxruntime.InferenceSession",
    "importlib.import_module",
    "csv.DictReader",
    "csv.reader",
    "pd.read_csv",
    "pd.read_parquet",
    "SimpleITK.ReadImage",
    "pickle.load",
    "pickle.loads",
    "ConfigParser",
}
# import what is registered, layers of two libraries, and libraries that the code names
NAMED = {
    "registry/table.py",
    "models/allowed_layers.py",
    "checks/other_libraries.py",
    "errors.py",
    "detectors/gaussian.py",
}
ITS_OWN = {"checks/machine.py", "training/options.py", "runtime.py"}  # read what they or pip wrote


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of a library's reader: the file with it, the reader, the call."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in READERS:
                yield file.relative_to(PACKAGE).as_posix(), name, node


def test_the_page_names_every_reader() -> None:
    assert {file for file, _, _ in calls()} - NAMED - ITS_OWN - set(re.findall(r"`([\w/]+\.py)`", PAGE)) == set()


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`(\w+/[\w/]+\.py|files\.py)`", PAGE))))
def test_the_page_names_files_that_are_there(file: str) -> None:
    assert (PACKAGE / file).is_file()


def test_no_reader_unpickles() -> None:
    keywords = {"torch.load": "weights_only", "np.load": "allow_pickle"}
    silent = [
        f"{file}:{call.lineno}"
        for file, name, call in calls()
        if name in keywords and keywords[name] not in {keyword.arg for keyword in call.keywords}
    ]
    assert silent == []
    refused = {"pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}
    assert [f"{file}:{call.lineno}" for file, name, call in calls() if name in refused] == []
    loaders = {ast.unparse(call.keywords[0]) for _, name, call in calls() if name == "yaml.load"}
    assert loaders == {"Loader=_PlainLoader"}  # a SafeLoader: no tag makes an object


def test_only_a_trusted_folder_of_nnunet_is_unpickled() -> None:
    values = {
        (file, ast.unparse(keyword.value))
        for file, name, call in calls()
        if name in ("torch.load", "np.load")
        for keyword in call.keywords
        if (keyword.arg, ast.unparse(keyword.value)) not in (("weights_only", "True"), ("allow_pickle", "False"))
        and keyword.arg in ("weights_only", "allow_pickle")
    }
    assert values == {("models/nnunet/results_folder.py", "not trust")}
