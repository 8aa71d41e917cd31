"""CNNDetection: a ResNet-50 trained on ProGAN's images, blurred and compressed.

Wang, Wang, Zhang, Owens, Efros: CNN-generated images are surprisingly easy to spot... for now, CVPR
2020, arXiv:1912.11035. https://github.com/PeterWang512/CNNDetection, CC BY-NC-SA 4.0.

Weights: `blur_jpg_prob0.5.pth` or `blur_jpg_prob0.1.pth`; the repository's
`weights/download_weights.sh` fetches them.

Preprocessing: the whole image, neither cropped nor resized, ImageNet's mean and std. That is what
the authors' demos do and recommend; the paper's own figures are of the central 224x224.
"""

import timm

from ganscope.detector.published.detector import PublishedDetector, from_file
from ganscope.detector.published.preparing import normalised


def load(weights: str) -> PublishedDetector:
    """ResNet-50 on whole images (Wang et al., CVPR 2020)."""
    return from_file("cnndetect", timm.create_model("resnet50", num_classes=1), normalised, weights)
