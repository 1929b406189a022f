"""Prints the requirements that pyproject.toml declares: the core's, and those of the extras that are named.

python .github/requirements/declared.py all test > requirements.txt
"""

import re
import sys
import tomllib
from pathlib import Path

with (Path(__file__).resolve().parents[2] / "pyproject.toml").open("rb") as file:
    project = tomllib.load(file)["project"]

found, asked = set(project["dependencies"]), list(sys.argv[1:])
for extra in asked:
    for requirement in project["optional-dependencies"][extra]:
        if own := re.fullmatch(r"pyllm\[(.*)\]", requirement):
            asked += [name for name in own[1].split(",") if name not in asked]
        else:
            found.add(requirement)
print(*sorted(found), sep="\n")
