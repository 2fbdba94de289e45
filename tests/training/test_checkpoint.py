"""Checkpoints: the newest that is whole, whatever has happened to the files."""

from pathlib import Path

import pytest
import torch

from chatwright.errors import ChatwrightError
from chatwright.training.checkpoint import Checkpoints

TENSORS = {"model.weight": torch.ones(4, 3), "step": torch.tensor(3.0), "mask": torch.tensor([True, False])}


def saved(folder: Path, *steps: int) -> None:
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, {**TENSORS, "number": torch.tensor(step)}, {"tokens": step})
        checkpoints.wait()


def loaded(folder: Path):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.load({})


def test_what_was_saved_is_loaded_and_the_newest_two_are_kept(tmp_path):
    assert loaded(tmp_path) is None
    saved(tmp_path, 1, 2, 3)
    step, tensors, values = loaded(tmp_path)
    assert (step, values, int(tensors.pop("number"))) == (3, {"tokens": 3}, 3)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("kind", ["*.safetensors", "values.json", "hashes.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path, capsys, kind, damage):
    saved(tmp_path, 1, 2)
    (file,) = (tmp_path / "step-00000002").glob(kind)
    damage(file)
    step, tensors, values = loaded(tmp_path)
    assert (step, int(tensors["number"]), values) == (1, 1, {"tokens": 1})
    assert "step-00000002: damaged" in capsys.readouterr().out.replace("\n", "")


def test_what_is_copied_is_what_is_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        tensor = torch.zeros(1000, 1000)
        checkpoints.save(1, {"x": tensor}, {})
        tensor.fill_(1)
    assert loaded(tmp_path)[1]["x"].sum() == 0


def test_a_full_disk_ends_the_run_with_a_remedy(tmp_path):
    saved(tmp_path, 1)
    # The device that is always full stands where an unfinished file is to be written.
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ".values.json.part").symlink_to("/dev/full")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, TENSORS, {})
        with pytest.raises(ChatwrightError, match=r"No space left on device.*; free some space"):
            checkpoints.wait()
    assert loaded(tmp_path)[0] == 1
