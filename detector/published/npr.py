"""NPR: neighbouring-pixel residuals into the first half of a ResNet-50.

Tan, Zhao, Wei, Gu, Liu, Wei: Rethinking the up-sampling operations in CNN-based generative network
for generalizable deepfake detection, CVPR 2024, arXiv:2312.10461.
https://github.com/chuangchuangtan/NPR-DeepfakeDetection; licence: see its repository.

Weights: `NPR.pth`, in the repository.

Preprocessing: the whole image, ImageNet's mean and std. The authors' test script also resizes to
256x256 where images of several sizes must share a batch; they say themselves (issue 23) that it is
meant for sets where that changes nothing, as it destroys what the network looks for.
"""

from ganscope.detector.networks.convolutional import NPR
from ganscope.detector.published.detector import PublishedDetector, from_file
from ganscope.detector.published.preparing import normalised


def load(weights: str) -> PublishedDetector:
    """Neighbouring-pixel residuals of whole images (Tan et al., CVPR 2024)."""
    return from_file("npr", NPR(), normalised, weights)
