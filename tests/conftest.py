"""What all tests share."""

import os

# Workers of pytest-xdist share the cores: if torch started a thread for each core in each of them, the threads would
# spin waiting for one another, and the tests would take four times as long. Set before torch is imported anywhere.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
