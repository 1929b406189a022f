"""``python -m pyllm``."""

from pyllm.cli import entry

if __name__ == "__main__":
    entry()
