"""Count the parameters of the model that a config describes, without building it or torch."""

from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, TransformerConfig, ViTConfig

_EXPANSION = 4  # of a bottleneck's output channels over its width


def count_parameters(config: CLIPConfig) -> int:
    """Return how many numbers a config's model learns. Statistics of batch norms are none of them.

    Example:
        count_parameters(clipkit.CLIP.from_pretrained("ViT-B/32").config)  # 151277313
    """
    vision, embed_dim = config.vision, config.embed_dim
    is_resnet = isinstance(vision, ResNetConfig)
    visual = _count_resnet(vision, embed_dim) if is_resnet else _count_vit(vision, embed_dim)
    temperature = 1
    return visual + _count_text(config.text, embed_dim) + temperature


def _count_vit(config: ViTConfig, embed_dim: int) -> int:
    width, size = config.width, config.patch_size
    rows, columns = (side // size for side in config.resolution)
    patches = 3 * size * size * width
    class_token = width
    positions = (rows * columns + 1) * width
    norms = 2 * _norm(width)
    projection = width * embed_dim
    return patches + class_token + positions + norms + _blocks(config) + projection


def _count_text(config: TextConfig, embed_dim: int) -> int:
    width = config.width
    embeddings = (config.vocab_size + config.context_length) * width
    projection = width * embed_dim
    return embeddings + _blocks(config) + _norm(width) + projection


def _blocks(config: TransformerConfig) -> int:
    """Count the residual blocks of a transformer."""
    width, hidden = config.width, config.mlp_width
    attention = 4 * _linear(width, width)  # queries, keys, values, and what comes of them
    mlp = _linear(width, hidden) + _linear(hidden, width)
    return config.layers * (attention + mlp + 2 * _norm(width))


def _count_resnet(config: ResNetConfig, embed_dim: int) -> int:
    width = config.width
    half = width // 2
    stem = _conv(3, half, 3) + _conv(half, half, 3) + _conv(half, width, 3)
    channels, stages = width, 0
    for stage, blocks in enumerate(config.layers):
        inner = width * 2**stage
        stages += _stage(channels, inner, blocks)
        channels = inner * _EXPANSION
    rows, columns = config.grid
    positions = (rows * columns + 1) * channels
    pool = positions + 3 * _linear(channels, channels) + _linear(channels, embed_dim)
    return stem + stages + pool


def _stage(channels: int, width: int, blocks: int) -> int:
    """Count bottlenecks one after another. The shortcut of the first changes the channels."""
    out = width * _EXPANSION
    shortcut = _conv(channels, out, 1)
    total = shortcut
    for _ in range(blocks):
        total += _conv(channels, width, 1) + _conv(width, width, 3) + _conv(width, out, 1)
        channels = out
    return total


def _conv(channels: int, out: int, size: int) -> int:
    """Count a convolution without a bias, and the batch norm after it."""
    return channels * out * size * size + 2 * out


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _norm(width: int) -> int:
    return 2 * width
