"""Load the backend modules that PYLLM_BACKENDS asks for, and say of the others why they are not in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pyllm.backends import needs, trial
from pyllm.backends.discover import Module

_HINT = "PYLLM_BACKENDS=cpu leaves all but the CPU out"


@dataclass
class Outcome:
    """What became of the modules.

    Attributes:
        rejected: Those that are not in use, each with its reason.
        warnings: One text for each thing that the user would want to mend.
    """

    rejected: list[Module] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def reject(self, module: Module) -> None:
        """Note a module that is out of use, and warn of it unless that was to be expected."""
        self.rejected.append(module)
        if not module.expected:
            advice = f" To mend it: {module.remedy}." if module.remedy else ""
            self.warnings.append(f"the backend {module.name!r} is not in use: {module.reason}.{advice} {_HINT}.")


def load(modules: Iterable[Module], load_file: Callable[[str], str]) -> Outcome:
    """Load modules for devices other than the CPU, in their order.

    Args:
        modules: The modules; those with a reason are rejected for it.
        load_file: Loads one file into this process; returns why that failed, or an empty text.
    """
    outcome = Outcome()
    used: dict[str, Module] = {}
    for found in modules:
        module = _judged(found, used)
        if not module.reason:
            reason = trial.failure(module)
            if not reason:
                needs.preload(module.path)
                reason = load_file(module.path)
            if not reason:
                used[module.kind] = module
                continue
            module = module.rejected(reason, needs.remedy(module, reason))
        outcome.reject(module)
    return outcome


def _judged(module: Module, used: dict[str, Module]) -> Module:
    """The module, rejected if another one has its place: one backend cannot be registered twice."""
    if module.reason:
        return module
    if module.kind == "cpu":
        return module.rejected("the code for the CPU is pyllm's own; PYLLM_CPU_VARIANT chooses it", expected=True)
    if module.kind in used:
        return module.rejected(
            f"{used[module.kind].path} is in use; PYLLM_BACKENDS={module.name} chooses this one", expected=True
        )
    return module


__all__ = ["Outcome", "load"]
