"""Exemplar-CNN and FILIP against slow, obvious references, and that both learn."""

import math

import torch
from torch.nn import functional as F

from chatwright.models import build
from chatwright.objectives.crossmodal.filip import FILIP, late_interaction, speak_as_loud
from chatwright.objectives.crossmodal.region import PLACE_SCALE, RegionFILIP, place_contrast, region_contrast
from chatwright.objectives.vision.exemplar import Exemplar, mosaic


def test_a_mosaic_has_every_view_in_its_place():
    views = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 2, 2)
    laid = mosaic(views, 2)
    assert laid.shape == (2, 3, 4, 4)
    assert laid[1, 0].tolist() == [[4, 4, 5, 5], [4, 4, 5, 5], [6, 6, 7, 7], [6, 6, 7, 7]]


def test_exemplar_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    objective = Exemplar(build.eye([8, 16, 32]), pictures=4, tiles=2)
    views = torch.eye(4)[:, :3].view(4, 3, 1, 1) * 2 + torch.randn(4, 3, 32, 32) * 0.1
    batch = {"views": views.repeat(2, 1, 1, 1), "picture": torch.arange(4).repeat(2)}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = objective.loss(batch)
        losses.append(float(loss.total.detach() / loss.weight))
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        optimizer.step()
    assert loss.weight == 8
    assert losses[-1] < 0.2 * losses[0]


def test_late_interaction_is_the_mean_over_words_of_the_best_patch():
    torch.manual_seed(0)
    patches, words = torch.randn(3, 4, 5), torch.randn(6, 5)
    captions = torch.rand(3, 6) < 0.5
    captions[:, 0] = True
    found = late_interaction(patches, words, captions)
    for i in range(3):
        for j in range(3):
            best = [max(float(patch @ words[w]) for patch in patches[i]) for w in range(6) if captions[j, w]]
            assert abs(float(found[i, j]) - sum(best) / len(best)) < 1e-5


def test_filip_brings_pictures_to_their_captions_and_spares_equal_ones(assistant, renderer):
    torch.manual_seed(0)
    objective = FILIP(assistant, renderer)
    captions = F.one_hot(torch.tensor([10, 20, 30, 30]), len(renderer.tokenizer)).bool()
    batch = {"pixel_values": torch.randn(4, 3, 32, 32), "captions": captions}
    first = objective.loss(batch)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(20):
        loss = objective.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.total < 0.5 * first.total
    assert loss.metrics["accuracy"][0] == 4  # the two equal captions are no negatives of each other


def test_patches_are_made_as_long_as_words(assistant):
    pixels = torch.randn(4, 3, 32, 32)
    speak_as_loud(assistant, pixels)
    patches = assistant.get_image_features(pixels).pooler_output.norm(dim=-1).mean()
    words = assistant.get_input_embeddings().weight.norm(dim=-1).mean()
    torch.testing.assert_close(patches, words, rtol=1e-3, atol=0)


def test_region_contrast_against_a_loop():
    torch.manual_seed(0)
    logits, weights = torch.randn(5, 7), torch.rand(5)
    places = torch.rand(5, 7) < 0.3
    places[:, 2] = True
    expected = 0.0
    for row, words, weight in zip(logits, places, weights, strict=True):
        chances = row.exp() / row.exp().sum()
        expected -= float(weight) * sum(float(chances[w].log()) for w in range(7) if words[w]) / int(words.sum())
    found = region_contrast(logits, places, weights)
    torch.testing.assert_close(found, torch.tensor(expected) / weights.sum())


def test_place_contrast_against_a_loop():
    torch.manual_seed(0)
    patches, directions = torch.randn(3, 4, 5), torch.randn(4, 5)
    expected = 0.0
    for picture in patches:
        for place, patch in enumerate(picture):
            for some, right in ((directions[:2], place // 2), (directions[2:], place % 2)):
                chances = [float((PLACE_SCALE * patch @ one).exp()) for one in some]
                expected -= math.log(chances[right] / sum(chances)) / 12
    torch.testing.assert_close(place_contrast(patches, directions), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_regions_teach_which_patch_shows_a_word(assistant, renderer):
    torch.manual_seed(0)
    objective = RegionFILIP(assistant, renderer)
    vocabulary, nothing = len(renderer.tokenizer), 5
    pixels = torch.randn(4, 3, 32, 32)
    count = assistant.get_image_features(pixels).pooler_output.shape[1]
    places = torch.zeros(4, count, vocabulary, dtype=torch.bool)
    places[..., nothing] = True
    for row, word in enumerate((10, 20, 30, 40)):
        places[row, row % count] = F.one_hot(torch.tensor(word), vocabulary).bool()
    batch = {"pixel_values": pixels, "captions": places.any(1), "places": places, "nothing": nothing}
    first = objective.loss(batch)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(30):
        loss = objective.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.total < 0.7 * first.total
    right, regions = loss.metrics["regions"]
    assert regions == 4 and right == 4
    patches = objective.patches(pixels)
    assert place_contrast(patches, objective.directions) < place_contrast(patches.roll(1, 1), objective.directions)
