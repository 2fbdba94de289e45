from pathlib import Path
import time
import pytest
from tests.processes import launch
from chatwright.training import distributed

def who():
    return distributed.rank(), distributed.size(), distributed.agreed(distributed.rank()+7), distributed.gathered(distributed.rank())

def test_it(tmp_path):
    for _ in range(3):
        t=time.time()
        print(launch(2,tmp_path,who), time.time()-t)
