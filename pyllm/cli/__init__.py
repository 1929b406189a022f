"""The command line: ``pyllm run``, ``chat``, ``pull``, ``list``, ``inspect``, ``doctor`` and others."""

from __future__ import annotations

import sys


def entry() -> None:
    """Run the program; the entry point of the ``pyllm`` command."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        from pyllm.cli import report

        if sys.argv[1:2] and sys.argv[1] in report.COMMANDS:
            return report.main(sys.argv[1], sys.argv[2:])
        from pyllm.extras import install_command

        sys.exit(f"pyllm: the command line needs {error.name}: {install_command(extra='cli')}")
    from pyllm.cli.main import main

    main()
