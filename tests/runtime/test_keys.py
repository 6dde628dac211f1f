"""Names of draws without torch; tests/runtime/test_rng.py holds their properties."""

import subprocess
import sys

from longtake.runtime import keys, rng


def test_one_function_under_both_names() -> None:
    assert rng.derive_key is keys.derive_key


def test_keys_need_no_torch_and_never_change() -> None:
    code = (
        "import sys\nfrom longtake.runtime.keys import derive_key\n"
        "print(derive_key(7, 'vbench', 'a red cup', 2), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    # Recorded: seeds of published plans and samples follow from it.
    assert done.stdout.split() == [str(keys.derive_key(7, "vbench", "a red cup", 2)), "False"]
    assert keys.derive_key(7, "vbench", "a red cup", 2) == 5877308891547536844
