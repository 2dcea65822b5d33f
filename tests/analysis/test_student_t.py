from __future__ import annotations

import math
import subprocess
import sys

import pytest
from scipy.special import stdtrit

from sim.analysis.student_t import quantile


def test_every_tabulated_quantile_is_scipys_to_the_last_bit() -> None:
    assert [quantile(0.975, n) for n in range(1, 251)] == [float(stdtrit(n, 0.975)) for n in range(1, 251)]


@pytest.mark.parametrize(("probability", "freedom"), [(0.975, 7.3), (0.95, 7), (0.975, 5000), (0.975, math.inf)])
def test_all_others_are_asked_of_scipy(probability: float, freedom: float) -> None:
    assert quantile(probability, freedom) == pytest.approx(float(stdtrit(freedom, probability)), nan_ok=True)


def test_an_interval_of_a_few_replications_imports_no_scipy() -> None:
    code = (
        "import sys, numpy as np\nfrom sim.analysis.summary import interval\n"
        "print(interval(np.arange(20.0)), 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
