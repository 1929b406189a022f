import logging

logger: logging.Logger

def refresh_level() -> None: ...
