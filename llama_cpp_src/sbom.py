"""The software bill of materials of a wheel, in CycloneDX's JSON format (PEP 770: .dist-info/sboms)."""

from __future__ import annotations

import json
import tomllib
import uuid
from collections.abc import Container
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "pyllm" / "server" / "page" / "vendor" / "VENDOR.toml"


def components(only: Container[str] | None = None) -> list[dict[str, str]]:
    """The entries of components.toml, all or those with these names, with the pinned version of llama.cpp."""
    with (HERE / "PIN.toml").open("rb") as file:
        pin = tomllib.load(file)["llama_cpp"]
    with (HERE / "components.toml").open("rb") as file:
        found: list[dict[str, str]] = tomllib.load(file)["component"]
    for component in found:
        if component["name"] == "llama.cpp":
            component |= {"version": pin["version"], "commit": pin["commit"]}
    return [component for component in found if only is None or component["name"] in only]


def page_components() -> list[dict[str, str]]:
    """The JavaScript of others in the server's page, in the form of :func:`components`."""
    with PAGE.open("rb") as file:
        packages = tomllib.load(file)["package"]
    return [{key: one[key] for key in ("name", "version", "licence")} | {"url": one["source"]} for one in packages]


def write(folder: str, metadata: Any, recorded: Path, contents: list[dict[str, str]]) -> None:
    """Write the bill of materials of a wheel.

    Args:
        folder: The wheel's .dist-info.
        metadata: Name and version of the distribution.
        recorded: What the build recorded of itself, as JSON.
        contents: The components that are inside.
    """
    target = Path(folder, f"sboms/{metadata.name}.cdx.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    info = json.loads(recorded.read_text(encoding="utf-8"))
    target.write_text(
        json.dumps(sbom(metadata.name, metadata.version, info, contents), indent=1) + "\n", encoding="utf-8"
    )


def sbom(name: str, version: str, info: dict[str, Any], contents: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """What is in the wheel of the distribution `name`; `info` is what the build recorded of itself."""
    parts = []
    for component in components() + page_components() if contents is None else contents:
        part: dict[str, Any] = {
            "type": "library",
            "name": component["name"],
            "licenses": [{"license": {"id": component["licence"]}}],
            "externalReferences": [{"type": "vcs", "url": component["url"]}],
        }
        if "version" in component:
            part["version"] = component["version"]
        if "commit" in component:
            part["pedigree"] = {"commits": [{"uid": component["commit"], "url": component["url"]}]}
        parts.append(part)
    root = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        "licenses": [{"license": {"id": "MIT"}}],
        "properties": [
            {"name": f"pyllm:{key}", "value": str(info[key])} for key in ("build_id", "kind", "compiler", "platform")
        ],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same build gives the same file.
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{root['purl']}#{info['build_id']}-{info['platform']}").urn,
        "version": 1,
        "metadata": {"component": root},
        "components": parts,
    }
