"""Small models from scratch: stock `transformers` classes, built from a few numbers."""

from typing import Any

from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    ResNetConfig,
    ResNetModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from chatwright.data.records import ROLES
from chatwright.errors import ChatwrightError
from chatwright.models.attention import use_packing

PAD, END_OF_TEXT, END, IMAGE = "<|pad|>", "<|endoftext|>", "<|end|>", "<image>"
SPECIAL_TOKENS = [PAD, END_OF_TEXT, END, IMAGE, *(f"<|{role}|>" for role in ROLES)]

# One token opens a turn and one ends it: in short conversations every token of form is a token less of content.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def decoder(tokenizer: PreTrainedTokenizerFast, width: int, depth: int, heads: int, length: int) -> Qwen3ForCausalLM:
    """A Qwen3 language model with tied embeddings.

    Args:
        tokenizer: decides the vocabulary and the special tokens.
        width: hidden size; the feed-forward layer is 8/3 as wide, rounded up to 32.
        depth: number of layers.
        heads: attention heads, half as many for keys and values.
        length: the longest sequence, in tokens.
    """
    if width % heads:
        raise ChatwrightError(f"width {width} is not divisible by heads {heads}; choose a multiple")
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=-(-width * 8 // 3 // 32) * 32,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            head_dim=width // heads,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=[tokenizer.convert_tokens_to_ids(END), tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    use_packing(model)
    return model


def eye(widths: list[int]) -> ResNetModel:
    """A small residual network: stride 4 at the stem and 2 at every further stage, so 3 stages see 16 x 16 pixels."""
    config = ResNetConfig(embedding_size=widths[0], hidden_sizes=widths, depths=[1] * len(widths), layer_type="basic")
    config.hidden_size = widths[-1]  # what FastVlm's projector asks for
    return ResNetModel(config)


def assistant(seeing: ResNetModel, speaking: Qwen3ForCausalLM, processor: LlavaProcessor) -> Any:
    """Put an eye and a language model together as a stock FastVlm; only the projector between them is new."""
    tokenizer = processor.tokenizer
    config = FastVlmConfig(
        vision_config=seeing.config,
        text_config=speaking.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(processor.image_processor.size["height"] // processor.patch_size) ** 2,
        tie_word_embeddings=True,
        eos_token_id=speaking.config.eos_token_id,
        pad_token_id=speaking.config.pad_token_id,
    )
    model = FastVlmForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(seeing.state_dict())
    model.model.language_model.load_state_dict(speaking.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = speaking.config.eos_token_id
    model.generation_config.pad_token_id = speaking.config.pad_token_id
    use_packing(model)
    return model


def processor(tokenizer: PreTrainedTokenizerFast, pixels: int, stride: int) -> LlavaProcessor:
    """A processor for pictures of ``pixels`` x ``pixels``, one image token for each ``stride`` x ``stride`` patch."""
    size = {"height": pixels, "width": pixels}
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=stride, vision_feature_select_strategy="full", chat_template=CHAT_TEMPLATE
    )
