"""Tiny models whose rotary embedding has several axes: they count the tokens of a picture by rows and columns."""

import pytest
import torch
from tests.conftest import CONTEXT, spread
from transformers import AutoConfig, AutoModelForMultimodalLM, PaddleOCRVLProcessor, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from chatwright.data.render import Renderer
from chatwright.models import build

MODELS = ["qwen2_vl", "qwen3_vl"]
PATCH, MERGED = 8, 2  # pixels of a patch; patches of a token, along either side
# As in real templates of such models, words stand between two pictures: one after the other they would be one.
TEMPLATE = build.CHAT_TEMPLATE.replace(build.IMAGE, f"[{build.IMAGE}]")
EYES = {
    "qwen2_vl": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    "qwen3_vl": {
        "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}  # fmt: skip


def mrope_renderer(tokenizer) -> Renderer:
    """Renders text and pictures of any shape, a token for 16 x 16 pixels.

    By the processor of PaddleOCR-VL, which is that of Qwen's models without the videos: those need torchvision.
    """
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGED, size=size)
    return Renderer(PaddleOCRVLProcessor(images, tokenizer, chat_template=TEMPLATE))


def mrope_model(kind: str, renderer: Renderer) -> PreTrainedModel:
    """An untrained one of MODELS, with two layers and wide weights."""
    torch.manual_seed(2)
    tokenizer = renderer.tokenizer
    words = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": sorted(renderer.stop_ids),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    sights = {"depth": 1, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGED, **EYES[kind]}
    tokens = {"image_token_id": renderer.placeholders["image"], "video_token_id": len(tokenizer)}
    config = AutoConfig.for_model(kind, text_config=words, vision_config=sights, **tokens)
    model = AutoModelForMultimodalLM.from_config(config)
    spread(model)
    with torch.no_grad():  # logits as large as a trained model's, not those of wide weights
        model.get_output_embeddings().weight.mul_(0.5)
    return model.eval()


@pytest.fixture(params=["fast_vlm", *MODELS])
def seeing(request) -> tuple[PreTrainedModel, Renderer]:
    """A model that sees: the assistant, which counts tokens one by one, and those that count by rows and columns."""
    if request.param == "fast_vlm":
        return request.getfixturevalue("assistant"), request.getfixturevalue("renderer")
    renderer = mrope_renderer(request.getfixturevalue("tokenizer"))
    return mrope_model(request.param, renderer), renderer
