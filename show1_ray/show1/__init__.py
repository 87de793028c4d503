"""Networks that no library has, and the loading of checkpoints.

`VideoUNet` is imported on first use: checking a pipeline file must not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from show1_ray.show1.video_unet import VideoUNet

__all__ = ["VideoUNet"]


def __getattr__(name: str) -> Any:
    if name == "VideoUNet":
        from show1_ray.show1.video_unet import VideoUNet

        return VideoUNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
