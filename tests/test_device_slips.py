"""Everything a model's tensors meet lies on their device: found on any machine by a device that is only pretended."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("pretended_device.py")


@pytest.mark.parametrize("check", ["probe", "families", "fits"])
def test_nothing_is_forgotten_on_the_cpu(check):
    done = subprocess.run([sys.executable, SCRIPT, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_slip_is_found():
    code = (
        "import torch, pretended_device as p\n"
        "with p.Pretending():\n"
        "    there = torch.ones(3).to(p.DEVICE)\n"
        "    assert there.device == p.DEVICE and (there + 1.0).cpu().tolist() == [2.0] * 3\n"
        "    for slip in (lambda: there + torch.ones(3), lambda: torch.ones(3)[there.long()], lambda: there.numpy()):\n"
        "        try:\n"
        "            slip()\n"
        "        except p.DeviceSlip:\n"
        "            continue\n"
        "        raise SystemExit('a slip went unseen')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True)
