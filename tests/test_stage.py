"""What is staged knows which distribution each file is of."""

from __future__ import annotations

from doctor.repair import stage


def test_distributions_that_hand_a_file_on_are_undone_together() -> None:
    old = {"cv2/a.py": "opencv-python", "numpy/a.py": "numpy", "only/old.py": "opencv-python"}
    new = {"cv2/a.py": "opencv-python-headless", "numpy/b.py": "numpy"}
    both = "opencv-python, opencv-python-headless"
    assert stage._together(old, new) == {
        "cv2/a.py": both,
        "only/old.py": both,
        "numpy/a.py": "numpy",
        "numpy/b.py": "numpy",
    }
