"""The libraries that are installed: within the declared bounds, and none with a fault that is known
here. `pip-audit` knows more; its data are on servers that tests do not ask."""

from importlib.metadata import PackageNotFoundError, requires, version

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

# Versions, the advisory, and what may happen: of direct dependencies, as published until 2025
FAULTS = {
    "jinja2": [
        ("<3.1.3", "CVE-2024-22195", "attributes of xmlattr are not escaped"),
        ("<3.1.4", "CVE-2024-34064", "attributes of xmlattr are not escaped"),
        ("<3.1.5", "CVE-2024-56326", "a template leaves its sandbox"),
        ("<3.1.6", "CVE-2025-27516", "a template leaves its sandbox"),
    ],
    "onnx": [("<1.13", "CVE-2022-25882", "external data are read from any folder")],
    "pillow": [
        ("<10.0.1", "CVE-2023-4863", "a WebP file writes beyond its memory"),
        ("<10.2", "CVE-2023-50447", "ImageMath.eval runs code"),
        ("<10.3", "CVE-2024-28219", "a colour profile writes beyond its memory"),
        (">=11.2,<11.3", "CVE-2025-48379", "a DDS file that is written overruns its memory"),
    ],
    "pyarrow": [("<14.0.1", "CVE-2023-47248", "reading a file runs code")],
    "pyyaml": [("<5.4", "CVE-2020-14343", "the full loader runs code")],
    "ray": [("<2.52", "CVE-2025-62593", "a web page runs code on the cluster")],
    "torch": [("<2.6", "CVE-2025-32434", "torch.load runs code, also with weights_only")],
}
# Not those of a comparison with other libraries' searches, whose versions are those it names
DECLARED = [
    Requirement(text)
    for text in requires("vgg-search") or []
    if "bench" not in text.partition(";")[2]
]


@pytest.mark.parametrize("declared", DECLARED, ids=lambda declared: declared.name)
def test_a_library_is_within_its_bounds_and_none_with_a_known_fault(declared: Requirement) -> None:
    try:
        installed = version(declared.name)
    except PackageNotFoundError:
        assert declared.marker, "only that of an extra need not be there"
        return
    assert declared.specifier.contains(installed, prereleases=True)
    faults = FAULTS.get(declared.name.lower(), [])
    assert [fault for fault in faults if installed in SpecifierSet(fault[0])] == []


@pytest.mark.parametrize("name", FAULTS)
def test_no_version_with_a_known_fault_is_asked_for(name: str) -> None:
    """Nor is the lowest that the bounds allow one: other tools than ours resolve to it."""
    (declared,) = {d.specifier for d in DECLARED if d.name.lower() == name}
    lowest = next(part.version for part in declared if part.operator == ">=")
    for versions, advisory, _ in FAULTS[name]:
        first = next((s.version for s in SpecifierSet(versions) if s.operator == ">="), lowest)
        for candidate in {lowest, first}:
            assert candidate not in SpecifierSet(versions) & declared, advisory
