"""Composite scenes are the same every time, and what is said of them is true of their pixels."""

import time

import numpy as np
import pytest
import torch

from repertory.data import Preprocessing, load
from repertory.data import composites as module
from repertory.data.composites import CLASSES, PARTS, PHOTOGRAPHS, CompositeSet, Recipe, composites, draw

CROWD = Recipe(objects=(3, 6), scale=(0.3, 0.6))


@pytest.fixture(scope="module")
def scenes():
    return [draw("train", 1, index, CROWD) for index in range(60)]


def test_the_default_set_is_small_and_complete():
    data = load("composites")
    assert (len(data.train), len(data.val), data.classes, data.task) == (2000, 400, CLASSES, "segmentation")
    image, mask, index = data.val[7]
    assert (image.shape, mask.shape, mask.dtype, index) == ((3, 64, 64), (64, 64), torch.int64, 7)
    assert image.dtype == torch.float32
    assert set(mask.unique().tolist()) <= set(range(11))


def test_the_digits_that_occur_can_stand_in_the_name():
    data = load("composites:07", size=32)
    found = {int(label) for index in range(12) for label in data.val[index][1].unique()}
    assert found <= {0, 1, 8}
    assert found & {1, 8}
    assert data.train.preprocessing.size == (32, 32)


@pytest.mark.parametrize("name", ["composites:", "composites:00", "composites:a"])
def test_a_name_with_other_than_different_digits_is_refused(name):
    with pytest.raises(ValueError, match="different digits"):
        load(name)


def test_two_thousand_scenes_take_seconds():
    part = CompositeSet("train", 200, seed=12345)
    part.raw(0)  # reads digits and photographs
    start = time.process_time()
    for index in range(len(part)):
        part.raw(index)
    assert time.process_time() - start < 2, "200 scenes took more than 2 s; 2,000 would take more than 20 s"


def test_a_scene_is_a_function_of_seed_part_and_index():
    one, two = CompositeSet("train", 50, seed=3), CompositeSet("train", 20, seed=3)
    last = draw("train", 3, 19, Recipe())
    for scene in (one.scene(19), two.scene(19)):
        assert torch.equal(scene.image, last.image)
        assert torch.equal(scene.amodal, last.amodal)
    assert torch.equal(one.raw(19)[0], last.image)
    assert torch.equal(one.raw(19)[1], last.mask)
    for other in (draw("train", 4, 19, Recipe()), draw("val", 3, 19, Recipe()), draw("train", 3, 18, Recipe())):
        assert not torch.equal(other.image, last.image)


def test_draws_are_those_that_numpys_philox_has_always_given():
    """The raw words of the counter-based generator are fixed by its definition, so scenes keep across versions."""
    words = np.random.Philox(key=np.array([5, 4 * 2 + 1], np.uint64)).random_raw(3)
    assert np.array_equal(module._uniform(5, 2, 1, 3), (words >> np.uint64(11)) / 2**53)
    assert module._uniform(0, 0, 0, 100_000).mean() == pytest.approx(0.5, abs=0.005)


def test_training_and_validation_share_neither_digits_nor_photographs():
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])
    train, val = ({image.tobytes() for image in module._digits("mnist5k", part)[0]} for part in PARTS)
    assert (len(train), len(val)) == (4000, 1000)
    assert not train & val
    shown = {part: {draw(part, 0, i, Recipe()).photograph for i in range(80)} for part in PARTS}
    assert shown == {part: set(names) for part, names in PHOTOGRAPHS.items()}


def test_labels_name_the_digit_images_that_were_used():
    source = load("mnist5k").train
    for index in range(10):
        scene = draw("train", 0, index, Recipe())
        assert [source.targets[i] + 1 for i in scene.identities.tolist()] == scene.labels.tolist()


def test_visible_instances_make_up_the_mask(scenes):
    for scene in scenes:
        instances = scene.instances
        assert int(instances.sum(0).max()) <= 1
        assert torch.equal(instances.any(0), scene.amodal.any(0))
        assert torch.equal(scene.mask > 0, instances.any(0))
        for label, instance in zip(scene.labels, instances):
            assert (scene.mask[instance] == label).all()


def test_the_front_digit_hides_those_behind_but_never_too_much(scenes):
    hidden = [scene for scene in scenes if float(scene.visible.min()) < 1]
    assert len(hidden) > 10
    for scene in scenes:
        assert torch.equal(scene.instances[-1], scene.amodal[-1])
        assert float(scene.visible.min()) >= CROWD.min_visible


def test_a_digit_has_one_colour_that_its_background_has_not():
    recipe = Recipe(objects=(1, 1))
    for index in range(20):
        scene = draw("train", 2, index, recipe)
        solid = scene.image[:, scene.mask > 0].float()
        middle = solid.median(1).values
        assert float((solid - middle[:, None]).abs().mean()) < 40
        around = scene.image[:, scene.mask == 0].float().mean(1)
        assert float((middle - around).abs().max()) > 10


def test_boxes_are_tight_and_points_lie_on_their_digit(scenes):
    for scene in scenes:
        for place, instance in enumerate(scene.instances):
            rows, columns = instance.any(1).nonzero().flatten(), instance.any(0).nonzero().flatten()
            x0, y0, x1, y1 = scene.boxes[place].tolist()
            assert (x0, y0, x1 - 1, y1 - 1) == (columns[0], rows[0], columns[-1], rows[-1])
            assert scene.centres[place].tolist() == [(x0 + x1) / 2, (y0 + y1) / 2]
            x, y = scene.points[place].tolist()
            assert instance[y, x]


def test_image_labels_are_the_classes_of_the_mask(scenes):
    for scene in scenes:
        assert set(scene.image_labels.nonzero().flatten().tolist()) == {0, *scene.mask.unique().tolist()}
    part = CompositeSet("val", 30)
    labels = part.image_labels()
    assert torch.equal(labels, torch.stack([part.scene(index).image_labels for index in range(30)]))


@pytest.mark.parametrize("kind", ["points", "scribbles"])
def test_weak_masks_say_nothing_wrong_and_little(scenes, kind):
    for scene in scenes[:20]:
        weak = scene.weak_mask(kind)
        said = weak != 255
        assert torch.equal(weak[said], scene.mask[said])
        assert 0 < float(said.float().mean()) < 0.25
        for instance in scene.instances:
            assert said[instance].any()
        assert (kind == "scribbles") == bool((weak == 0).any())


def test_box_masks_hold_every_digit(scenes):
    for scene in scenes[:20]:
        weak = scene.weak_mask("boxes")
        assert (weak[scene.mask > 0] > 0).all()
        smallest = int(((scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1)).argmin())
        x0, y0, x1, y1 = scene.boxes[smallest].long().tolist()
        assert (weak[y0:y1, x0:x1] == scene.labels[smallest]).all()


def test_digits_can_be_chosen_and_keep_their_class_index():
    part = CompositeSet("train", 40, recipe=Recipe(digits=(2, 7)))
    assert part.image_labels().any(0).nonzero().flatten().tolist() == [0, 3, 8]


def test_episodes_are_drawn_by_number_and_never_reuse_an_item():
    part = CompositeSet("train", 120)
    labels = part.image_labels()
    episode = part.episode(4, ways=3, shots=2, queries=4)
    assert episode == part.episode(4, ways=3, shots=2, queries=4)
    assert episode != part.episode(5, ways=3, shots=2, queries=4)
    assert len(set(episode.classes)) == 3
    items = [item for side in (episode.support, episode.query) for listed in side for item in listed]
    assert len(items) == len(set(items)) == 3 * (2 + 4)
    for side in (episode.support, episode.query):
        for label, listed in zip(episode.classes, side):
            assert labels[list(listed), label].all()


def test_any_size_is_drawn_at_that_size():
    data = load("composites", size=(32, 48), channels="L")
    assert data.train[0][0].shape == (1, 32, 48)
    assert data.train.raw(0)[0].shape == (3, 32, 48)
    tall = CompositeSet("val", 2, recipe=Recipe(size=(512, 20), objects=(2, 2)))
    assert tall.raw(1)[1].shape == (512, 20)
    larger = composites(64, 4, 4).with_preprocessing(Preprocessing(size=(96, 96), crop=1.0))
    assert larger.val[0][1].shape == (96, 96)


def test_a_set_too_large_to_keep_is_drawn_each_time(monkeypatch):
    monkeypatch.setattr(module, "_MOST_CACHED", 1000)
    part = CompositeSet("train", 5)
    assert torch.equal(part.raw(2)[0], draw("train", 0, 2, Recipe()).image)
    assert torch.equal(part.raw(2)[1], draw("train", 0, 2, Recipe()).mask)


def test_what_is_kept_does_not_change_with_its_copies():
    part = CompositeSet("train", 5, seed=77)
    for given in part.raw(0):
        given.fill_(9)
    assert torch.equal(part.raw(0)[0], part.scene(0).image)
    assert torch.equal(part.raw(0)[1], part.scene(0).mask)


def test_a_scene_may_be_empty():
    scene = draw("train", 0, 0, Recipe(objects=(0, 0)))
    assert len(scene) == 0
    assert scene.boxes.shape == (0, 4)
    assert scene.points.shape == scene.centres.shape == (0, 2)
    assert scene.image_labels.tolist() == [True] + [False] * 10
    assert not scene.mask.any()
    assert not scene.weak_mask("boxes").any()


@pytest.mark.parametrize("source", ["mnist5k", "digits"])
def test_every_digit_has_ink_at_the_least_size(source):
    recipe = Recipe(size=(16, 16), scale=(0.1, 0.1), rotation=180, source=source)
    images, members = module._digits(source, "train")
    assert sum(map(len, members)) == len(images)
    draws = module._uniform(0, 0, 0, 4 * len(images)).reshape(-1, 4)
    for image, numbers in list(zip(images, draws))[::5]:
        assert (module._ink(image, numbers, recipe) >= 0.5).any()


def test_a_digit_larger_than_its_picture_is_cut_and_still_seen():
    recipe = Recipe(size=(16, 40), objects=(1, 2), scale=(1.0, 1.0), rotation=180, source="digits")
    for index in range(40):
        scene = draw("train", 0, index, recipe)
        assert scene.amodal.flatten(1).any(1).all()
        assert float(scene.visible.min()) >= recipe.min_visible


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: Recipe(size=(8, 64)), r"size is \(8, 64\); it must be \(height, width\) of 16 pixels or more"),
        (lambda: Recipe(objects=(3, 2)), r"objects is \(3, 2\)"),
        (lambda: Recipe(scale=(0.5, 1.5)), r"scale is \(0.5, 1.5\)"),
        (lambda: Recipe(rotation=-1), "rotation is -1; it must be 0 to 180 degrees"),
        (lambda: Recipe(min_visible=0), "min_visible is 0"),
        (lambda: Recipe(digits=(1, 10)), r"digits is \(1, 10\); it must be one or more different numbers of 0 to 9"),
        (lambda: Recipe(digits=()), r"digits is \(\)"),
        (lambda: Recipe(source="mnist"), "unknown source of digits 'mnist': did you mean mnist5k"),
        (lambda: CompositeSet("test"), "unknown part 'test'"),
        (lambda: CompositeSet("train", 0), "count is 0; it must be 1 or more"),
        (lambda: CompositeSet(seed=-1), "seed is -1"),
        (lambda: composites(8), "size is"),
        (lambda: CompositeSet("train", 5).episode(0, ways=11), "ways is 11; the set has 10 digits"),
        (lambda: CompositeSet("train", 5).episode(0, shots=0), "shots is 0; it must be 1 or more"),
        (lambda: CompositeSet("train", 5).episode(0, shots=3), "the set has only . items left that show the class"),
        (lambda: CompositeSet("train", 5).scene(0).weak_mask("guess"), "unknown kind of supervision 'guess'"),
    ],
)
def test_bad_settings_are_named(call, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [5, -1])
def test_an_index_outside_the_set_is_refused(index):
    part = CompositeSet("train", 5)
    for take in (part.scene, part.raw, part.__getitem__):
        with pytest.raises(IndexError, match=f"index {index} is out of range: the set has 5 items"):
            take(index)
