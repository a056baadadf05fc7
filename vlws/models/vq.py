"""Pictures as tokens: a small vector-quantised autoencoder (van den Oord et al. 2017) whose tokens are local.

A token is a code of one patch and of nothing beside it, so that the same thing on the same ground has the same tokens
wherever the rest of the picture differs: a VQGAN's encoder, which sees the whole picture in each token, gave tokens
that a small decoder could not learn in minutes. The way back looks at neighbours.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.errors import InputError
from vlws.models import hub
from vlws_kernels import nearest_code


@dataclass(frozen=True)
class VQConfig:
    """Sizes: pictures of `side` pixels, a token each `patch` x `patch`, codes of length 1 and dimension `dim`.

    >>> VQConfig().tokens
    64
    """

    side: int = 32
    patch: int = 4
    codes: int = 512
    dim: int = 16
    width: int = 128

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return (self.side // self.patch) ** 2


class Residual(nn.Module):
    """Two convolutions of 3 x 3, added to what comes in.

    >>> Residual(8)(torch.zeros(1, 8, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """ "row width h w" in and out."""
        return x + self.body(x)


class PictureTokenizer(nn.Module):
    """Pictures "row 3 side side" in [-1, 1] to token ids "row token" (int64, row by row from the top), and back.

    >>> vq = PictureTokenizer(VQConfig())
    >>> vq.encode(torch.zeros(2, 3, 32, 32)).shape, vq.decode(torch.zeros(2, 64, dtype=torch.long)).shape
    (torch.Size([2, 64]), torch.Size([2, 3, 32, 32]))
    >>> vq.from_codes(vq.before_codes(torch.zeros(2, 3, 32, 32))).shape  # past the codes
    torch.Size([2, 3, 32, 32])
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> vq.save_pretrained(folder)
    >>> PictureTokenizer.from_pretrained(folder).config == vq.config
    True
    """

    codes: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.to_code = nn.Sequential(
            nn.Conv2d(3, width, config.patch, stride=config.patch),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            nn.Conv2d(width, config.dim, 1),
        )
        self.to_pixels = nn.Sequential(
            nn.Conv2d(config.dim, width, 3, padding=1),
            Residual(width),
            Residual(width),
            nn.GELU(),
            nn.Conv2d(width, 3 * config.patch**2, 1),
            nn.PixelShuffle(config.patch),
        )
        self.register_buffer("codes", F.normalize(torch.randn(config.codes, config.dim), dim=-1))

    def before_codes(self, pixels: Tensor) -> Tensor:
        """Pictures -> vectors of length 1, "row h w dim"."""
        return F.normalize(rearrange(self.to_code(pixels), "b d h w -> b h w d"), dim=-1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Vectors "row h w dim" -> pictures, about [-1, 1]."""
        return self.to_pixels(rearrange(codes, "b h w d -> b d h w"))

    @torch.no_grad()
    def encode(self, pixels: Tensor, chunk: int = 512) -> Tensor:
        """Pictures -> token ids.

        Raises:
            InputError: pictures of another size.
        """
        side = self.config.side
        if pixels.shape[-2:] != (side, side):
            h, w = pixels.shape[-2:]
            raise InputError(f"Pictures of {w} x {h} pixels: this tokenizer reads {side} x {side}.")
        parts = [self.before_codes(part.to(self.codes.device)).flatten(1, 2) for part in pixels.split(chunk)]
        return torch.cat([nearest_code(z.flatten(0, 1), self.codes)[1].view(z.shape[:2]) for z in parts])

    @torch.no_grad()
    def decode(self, ids: Tensor, chunk: int = 512) -> Tensor:
        """Token ids -> pictures, about [-1, 1]."""
        h = self.config.side // self.config.patch
        parts = [
            rearrange(self.codes[part], "b (h w) d -> b h w d", h=h) for part in ids.to(self.codes.device).split(chunk)
        ]
        return torch.cat([self.from_codes(part) for part in parts])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and config."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        settings = {"model_type": "picture_tokenizer", **asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PictureTokenizer":
        """What `save_pretrained` wrote; frozen, in eval mode, float32."""
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        vq = cls(VQConfig(**{k: v for k, v in settings.items() if k != "model_type"}))
        vq.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return vq.float().eval().requires_grad_(False)


def load_vq(name: str, device: str = "auto") -> PictureTokenizer:
    """A picture tokenizer: the name of a shipped one, or a folder.

    >>> vq = load_vq("vq-emoji", "cpu")
    >>> vq.config.side, vq.config.codes
    (32, 512)
    """
    source, _ = hub.locate(name, hub.VQ)
    return PictureTokenizer.from_pretrained(source).to(hub.resolve_device(device))


def from_pixels(pictures: np.ndarray) -> Tensor:
    """Pictures "n h w 3" uint8 -> "n 3 h w" float32 in [-1, 1].

    >>> from_pixels(np.full((1, 2, 2, 3), 255, np.uint8)).unique().tolist()
    [1.0]
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise InputError(
            f"Pictures are {pictures.dtype} {pictures.shape}; accepted is uint8 of shape n, h, w, 3 (RGB)."
        )
    return rearrange(torch.from_numpy(pictures), "n h w c -> n c h w").float() / 127.5 - 1


def to_pixels(values: Tensor) -> np.ndarray:
    """The way back: "n 3 h w" -> "n h w 3" uint8, what lies outside [-1, 1] clipped.

    >>> pictures = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    >>> bool((to_pixels(from_pixels(pictures)) == pictures).all())
    True
    """
    scaled = ((values.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return rearrange(scaled, "n c h w -> n h w c").numpy()
