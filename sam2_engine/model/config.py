"""Hyper-parameters of every SAM 2 variant, as plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class HieraConfig:
    """The hierarchical vision transformer of the published models (paper, section 4 and C.1)."""

    embed_dim: int = 96
    """Width of the first stage; it doubles, as do the heads, with every later stage."""
    num_heads: int = 1
    stages: tuple[int, int, int, int] = (1, 2, 7, 2)
    """Blocks per stage."""
    global_blocks: tuple[int, ...] = (5, 7, 9)
    """Indices of the blocks that attend over the whole image; all others attend in windows."""
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    """Window size per stage, in tokens."""
    background_size: tuple[int, int] = (7, 7)
    """Size of the positional embedding that is stretched over the image."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at strides 4, 8, 16 and 32."""
        return tuple(self.embed_dim * 2**stage for stage in range(4))


@dataclass(frozen=True)
class ConvStage:
    """Blocks of one kind that follow each other in a convolutional trunk."""

    blocks: int
    channels: int
    kernel: int
    stride: int
    expansion: int


@dataclass(frozen=True)
class ConvTrunkConfig:
    """Inverted residual blocks (Sandler et al., 2018) in EfficientNet-Lite0's arrangement."""

    stem_channels: int = 32
    stages: tuple[ConvStage, ...] = (
        ConvStage(1, 16, 3, 1, 1),
        ConvStage(2, 24, 3, 2, 6),
        ConvStage(2, 40, 5, 2, 6),
        ConvStage(3, 80, 3, 2, 6),
        ConvStage(3, 112, 5, 1, 6),
        ConvStage(4, 192, 5, 2, 6),
        ConvStage(1, 320, 3, 1, 6),
    )

    @property
    def output_stages(self) -> tuple[int, ...]:
        """Indices of the last stages at strides 4, 8, 16 and 32."""
        last: dict[int, int] = {}
        stride = 2
        for index, stage in enumerate(self.stages):
            stride *= stage.stride
            last[stride] = index
        return tuple(last[stride] for stride in (4, 8, 16, 32))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at strides 4, 8, 16 and 32."""
        return tuple(self.stages[index].channels for index in self.output_stages)


_LARGEST_INPUT = 4096  # pixels; a larger one fills any memory


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of a SAM 2 network."""

    trunk: HieraConfig | ConvTrunkConfig = field(default_factory=HieraConfig)
    version: str = "2.1"
    """"2.1" adds a learned embedding to memories of absent objects and times to object pointers."""
    image_size: int = 1024
    """Side of the square input in pixels, a multiple of 32."""
    d_model: int = 256
    memory_dim: int = 64
    memory_layers: int = 4
    memory_ffn: int = 2048
    decoder_mlp: int = 2048
    num_memories: int = 7
    """Memory slots with a temporal embedding: prompted frames have one, t-1 to t-6 the others."""
    max_pointers: int = 16
    """A frame sees object pointers of prompted frames and of t-1 to t-(max_pointers - 1)."""
    draws_prompts: bool = False
    """Clicks and boxes are also drawn into the decoder's mask input, and a tracked frame's decoder
    starts from the mask of the frame before. Not in the published models, which learn the places of
    prompts and of memories in a long training; a small model in a short one does not."""
    refines_masks: bool = False
    """The decoder's upscaled features pass through 3 x 3 convolutions that also see the mask input.
    Not in the published models."""

    def __post_init__(self) -> None:
        if self.version not in ("2.0", "2.1"):
            raise ValueError(f"version must be '2.0' or '2.1', not {self.version!r}")
        if not 0 < self.image_size <= _LARGEST_INPUT or self.image_size % 32:
            raise ValueError(
                f"A model's input is a multiple of 32 pixels wide, up to {_LARGEST_INPUT}, and not "
                f"{self.image_size}."
            )
        if self.d_model % self.memory_dim:
            raise ValueError(
                f"d_model ({self.d_model}) must be a multiple of memory_dim ({self.memory_dim}), "
                "because an object pointer is split into memory tokens"
            )

    def resized(self, image_size: int) -> ModelConfig:
        """The same network for another input size."""
        return replace(self, image_size=image_size)


_HIERA = {
    "tiny": HieraConfig(),
    "small": HieraConfig(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base-plus": HieraConfig(
        embed_dim=112,
        num_heads=2,
        stages=(2, 3, 16, 3),
        global_blocks=(12, 16, 20),
        background_size=(14, 14),
    ),
    "large": HieraConfig(
        embed_dim=144,
        num_heads=2,
        stages=(2, 6, 36, 4),
        global_blocks=(23, 33, 43),
        windows=(8, 4, 16, 8),
    ),
}

VARIANTS: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        trunk=ConvTrunkConfig(),
        image_size=256,
        d_model=128,
        memory_layers=2,
        memory_ffn=512,
        decoder_mlp=512,
        draws_prompts=True,
        refines_masks=True,
    ),
    **{f"sam2.1-{size}": ModelConfig(trunk=trunk) for size, trunk in _HIERA.items()},
    **{f"sam2-{size}": ModelConfig(trunk=trunk, version="2.0") for size, trunk in _HIERA.items()},
}
"""The bundled model and the eight published ones."""
