"""`dmnotid bearer`, as far as it needs no bus."""

import subprocess
import sys

import pytest

from dmnotid.cli.bearer import BEARERS
from tests.cli.program import PATIENCE


@pytest.mark.parametrize("telephony", BEARERS)
def test_missing_jeepney_is_an_error_that_names_its_packages(telephony: str) -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    script = "import sys; sys.modules['jeepney'] = None; from dmnotid.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "bearer", telephony],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "dmnotid bearer: jeepney is missing, which speaks D-Bus: pip install 'dmnotid[sms]', or apt install"
        " python3-jeepney\n"
    )
