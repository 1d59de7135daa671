"""One style of log lines, whoever logs."""

import subprocess
import sys

CODE = """
import logging
from headrace.telemetry import configure_logging, get_logger
configure_logging("worker")
get_logger().info("ours", rows=2)
logging.getLogger("deltalake").warning("theirs %d", 3)
logging.getLogger("deltalake").info("unsaid")
"""


def test_what_libraries_log_looks_like_what_we_log():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    ours, theirs = done.stderr.splitlines()
    assert "level=info process=worker event=ours rows=2" in ours
    assert 'level=warning process=worker event="theirs 3" logger=deltalake' in theirs
