"""An image-text model as a judge that needs no label: similarities of frames to prompts, through open_clip.

`Judge.open("FOLDER")` reads open_clip's own layout (open_clip_config.json and weights beside it) and never looks at the
network; `Judge.open("hf-hub:mkaichristensen/echo-clip")` has open_clip fetch what the user named (EchoCLIP's weights
are the user's to obtain). Scores of the similarities are in measure/judge_score.py.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg.errors import EdgesegError, need

if TYPE_CHECKING:
    import torch

MASK_PROMPTS = ("WALL", "LEFT VENTRICLE", "NOTHING")
VALVE_PROMPTS = ("THE MITRAL VALVE IS CLOSED", "THE MITRAL VALVE IS OPEN")
"""EchoDFKD's prompts."""
HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
BATCH = 20
"""Frames a pass."""


class Judge:
    """An open_clip model with its own preprocessing and tokenizer.

    Attributes:
        name: of the folder, or as given. provenance: name, parameters and, of a folder, sha256 of the weights.
    """

    def __init__(self, model: "torch.nn.Module", preprocess: Callable[[Any], "torch.Tensor"],
                 tokenizer: Callable[[list[str]], "torch.Tensor"], name: str, device: str = "cpu") -> None:
        self._model = model.eval().requires_grad_(False).to(device)
        self._preprocess, self._tokenizer, self.device, self.name = preprocess, tokenizer, device, name
        self.provenance: dict[str, Any] = {"name": name, "parameters": sum(p.numel() for p in model.parameters())}

    @classmethod
    def open(cls, name: str | Path, device: str = "cpu") -> "Judge":
        """Open a local folder, or a model of the Hugging Face hub if and only if `name` starts with hf-hub:.

        Raises:
            EdgesegError: open_clip is not installed; no such folder; files that are damaged or do not fit; a local
                configuration that would have parts fetched; a hub model that cannot be fetched.
        """
        open_clip = import_open_clip()
        text = str(name)
        if text.startswith(HUB):
            return cls._load(open_clip, text, text, device)
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise EdgesegError(f"{text}: no such folder; a model of the Hugging Face hub is written {HUB}OWNER/NAME")
        weights = check_local(folder)
        judge = cls._load(open_clip, f"local-dir:{folder}", text, device)
        from edgeseg.teachers.checkpoint import sha256

        judge.name = judge.provenance["name"] = folder.resolve().name
        judge.provenance["sha256"] = {path.name: sha256(path) for path in weights}
        return judge

    @classmethod
    def _load(cls, open_clip: Any, name: str, said: str, device: str) -> "Judge":
        try:
            model, preprocess = open_clip.create_model_from_pretrained(name, return_transform=True)
            return cls(model, preprocess, open_clip.get_tokenizer(name), said, device)
        except Exception as error:  # of json, torch, safetensors, the hub, or the constructor of any network
            why = " ".join(str(error).split())[:160]
            raise EdgesegError(f"{said}: open_clip cannot load it ({type(error).__name__}: {why}): copy or download "
                               "the model again") from None

    def embed_frames(self, frames: np.ndarray) -> np.ndarray:
        """Grey [T, H, W] or RGB [T, H, W, 3] frames in 0..255 -> float32 [T, D] of length 1."""
        import torch
        from PIL import Image

        pixels = np.clip(np.rint(frames), 0, 255).astype(np.uint8)
        found = []
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH):
                pictures = [Image.fromarray(p).convert("RGB") for p in pixels[start : start + BATCH]]
                x = torch.stack([self._preprocess(p) for p in pictures]).to(self.device)
                found.append(self._model.encode_image(x, normalize=True).float().cpu().numpy())  # type: ignore[operator]
        return np.concatenate(found)

    def embed_prompts(self, prompts: Sequence[str]) -> np.ndarray:
        """float32 [P, D] of length 1."""
        import torch

        with torch.inference_mode():
            tokens = self._tokenizer(list(prompts)).to(self.device)
            return self._model.encode_text(tokens, normalize=True).float().cpu().numpy()  # type: ignore[operator]

    def similarities(self, frames: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Cosine of each frame with each prompt: float32 [T, P]. `frames` as of `embed_frames`."""
        return self.embed_frames(frames) @ self.embed_prompts(prompts).T

    def of_masks(self, frames: np.ndarray, prompts: Sequence[str] = MASK_PROMPTS) -> np.ndarray:
        """[T, 3]: to the prompts for a wall, the left ventricle and nothing."""
        return self.similarities(frames, prompts)

    def of_valve(self, frames: np.ndarray, prompts: Sequence[str] = VALVE_PROMPTS) -> np.ndarray:
        """[T, 2]: to the prompts for a closed and an open mitral valve."""
        return self.similarities(frames, prompts)


def import_open_clip() -> Any:
    """open_clip, with torchvision under it made to import beside a CPU-only torch."""
    from edgeseg.torchvision_ops import import_torchvision

    need("torch", "judge")
    import_torchvision()
    return need("open_clip", "judge")


def check_local(folder: Path) -> list[Path]:
    """The files with weights; refuses what open_clip would not read, or would fetch parts of, in words of ours."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        model = config["model_cfg"]
        names = {model["text_cfg"].get("hf_model_name"), model["vision_cfg"].get("timm_model_name")} - {None, ""}
    except FileNotFoundError:
        raise EdgesegError(f"{folder}: holds no {CONFIG}: name the folder of an open_clip model") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EdgesegError(f"{path}: not the configuration of an open_clip model (model_cfg with vision_cfg and "
                           "text_cfg)") from None
    if model["text_cfg"].get("hf_model_name") or any(":" in str(n) for n in names):
        raise EdgesegError(f"{path}: takes parts from the network ({', '.join(map(str, names))}), and a local folder "
                           f"is never a reason to download: write {HUB}OWNER/NAME to have it fetched")
    weights = sorted(p for end in ("safetensors", "bin", "pth") for p in folder.glob(f"*.{end}"))
    if not weights:
        raise EdgesegError(f"{folder}: holds no weights ({WEIGHTS}): copy them beside {CONFIG}")
    return weights
