"""Prints the requirements that pyproject.toml declares: the core's, and those of the extras that are named.

python .github/requirements/declared.py all test > requirements.txt

With --lowest they are constraints instead, which hold each package to the lowest version that is declared. What these
packages need comes as new as possible: an environment with an old version of one has new versions of others.

python .github/requirements/declared.py --lowest all test > constraints.txt
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def declared(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The requirements of the core and of extras, and of the extras that those name."""
    found, asked = set(project["dependencies"]), list(extras)
    for extra in asked:
        for requirement in project["optional-dependencies"][extra]:
            if own := re.fullmatch(r"pyllm\[(.*)\]", requirement):
                asked += [name for name in own[1].split(",") if name not in asked]
            else:
                found.add(requirement)
    return sorted(found)


def lowest(requirements: list[str]) -> list[str]:
    """The lines of a constraints file, one for each package.

    Raises:
        ValueError: A requirement has no lowest version, or a package has two.
    """
    bounds: dict[str, str] = {}
    for requirement in requirements:
        found = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
        if found is None:
            raise ValueError(f"{requirement!r} declares no lowest version: write name>=version")
        name, version = re.sub(r"[-_.]+", "-", found[1]).lower(), found[2]
        if bounds.setdefault(name, version) != version:
            raise ValueError(f"{name} is declared as >={bounds[name]} and as >={version}: one package has one bound")
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


if __name__ == "__main__":
    with (Path(__file__).resolve().parents[2] / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    requirements = declared(project, [name for name in sys.argv[1:] if name != "--lowest"])
    print(*(lowest(requirements) if "--lowest" in sys.argv[1:] else requirements), sep="\n")
