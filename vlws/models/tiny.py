"""Tiny configurations of real Hugging Face classes: what the shipped backbones are made of."""

from transformers import CLIPConfig

TEXT_LENGTH = 32  # tokens, both ends included
IMAGE_SIZE = 32  # pixels
PATCH_SIZE = 8


def clip_config(vocab_size: int, bos_token_id: int, eos_token_id: int) -> CLIPConfig:
    """CLIPModel of about 0.6 M parameters: 16 patches of 8 px, 3 layers of 96; text 2 layers of 96; projection 64.

    `eos_token_id` must not be 2: CLIPTextModel keeps an older pooling (the largest id) for that value.

    >>> from transformers import CLIPModel
    >>> config = clip_config(vocab_size=2048, bos_token_id=0, eos_token_id=1)
    >>> config.vision_config.image_size, config.text_config.max_position_embeddings
    (32, 32)
    >>> round(CLIPModel(config).num_parameters() / 1e6, 1)
    0.6
    """
    if eos_token_id == 2:
        raise ValueError("eos_token_id=2 selects CLIP's legacy pooling; give the end token another id.")
    return CLIPConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": eos_token_id,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        projection_dim=64,
    )
