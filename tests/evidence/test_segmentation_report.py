"""Pictures of one scene stand in one row: image, truth, what the baseline made of it, what the method did."""

import re

import numpy as np
from PIL import Image

from repertory.evidence.report import _pictures


def arm(folder, name, pictures):
    home = folder / name
    home.mkdir()
    saved = []
    for number, (caption, value) in enumerate(pictures.items()):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(home / f"{number}.png")
        saved.append({"caption": caption, "file": f"{number}.png"})
    return {"name": name, "label": name.title(), "runs": [{"folder": str(home), "seed": 0, "pictures": saved}]}


def test_rows_hold_image_truth_baseline_method_and_others_in_this_order(tmp_path):
    def scenes(first, second):
        shared = {"Picture 1: image": 1, "Picture 1: truth": 2, "Picture 1: prediction": first}
        return shared | {"Picture 2: image": 3, "Picture 2: truth": 2, "Picture 2: prediction": second}

    arms = [
        arm(tmp_path, "other", scenes(9, 7)),
        arm(tmp_path, "method", scenes(5, 6)),
        arm(tmp_path, "plain", scenes(4, 4)),
    ]
    page = _pictures({"arms": arms, "baseline": "plain", "method": "method"})
    rows = re.split("<h4>", page)[1:]
    assert [row.partition("<")[0] for row in rows] == ["Picture 1", "Picture 2"]
    assert re.findall('alt="([^"]*)"', rows[0]) == [
        "Picture 1: image (shared by 3 arms)",
        "Picture 1: truth (shared by 3 arms)",
        "Picture 1: prediction (Plain, seed 0)",
        "Picture 1: prediction (Method, seed 0)",
        "Picture 1: prediction (Other, seed 0)",
    ]
    assert len(re.findall("alt=", rows[1])) == 5
