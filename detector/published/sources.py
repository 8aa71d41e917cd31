"""Where the weights of published detectors are to be had: pinned files, checksums, licences.

A revision or a checksum is here only if it could be learned; nobody guesses one. What a checksum
rests on stands beside it.
"""

from dataclasses import dataclass

GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """One weights file, as its authors publish it."""

    file: str
    """Its name."""
    licence: str
    page: str
    """Where a person finds it."""
    size: str = ""
    """In words, for a person who decides whether to download it."""
    web: str = ""
    """The address of the file, or of a ZIP archive that holds it; it names a commit or a release,
    where there is one."""
    member: str = ""
    """The file's path in that archive."""
    hub: str = ""
    """Instead of an address: the repository on the Hugging Face hub."""
    revision: str = ""
    """The commit there."""
    sha256: str = ""
    """Of the file; "": not known, the first download is trusted and later ones compared with it."""

    @property
    def url(self) -> str:
        """What to download by hand; "": only `page` says."""
        if self.hub:
            return f"https://huggingface.co/{self.hub}/resolve/{self.revision}/{self.file}"
        return self.web


LADEDA = "barcavia/RealTime-DeepfakeDetection-in-the-RealWorld"
DEEPFAKEBENCH = "https://github.com/SCLBD/DeepfakeBench/releases"
SOURCES = {
    # The hub's own record of the file (Git LFS), as many projects that pin this revision quote it.
    "commfor": Source(
        "model.safetensors",
        "MIT",
        "https://huggingface.co/OwensLab/commfor-model-384",
        size="87 MB",
        hub="OwensLab/commfor-model-384",
        revision="6076002bf0d9dd37537f965ee2f06f826c333b61",
        sha256="b89f36275f3bf5e2b040eee36597a8f19db051bff9a473a9cf7b2466284fb387",
    ),
    # extension/model_manifest.json of the repository, commit f494e3f, names file and checksum.
    "sieve": Source(
        "ft44s_best_fp16.onnx",
        "MIT",
        "https://github.com/Phineas1500/sieve-ai-image-detector/releases/tag/v0.10.0",
        size="45 MB",
        web="https://github.com/Phineas1500/sieve-ai-image-detector/releases/download/v0.10.0/"
        "ft44s_best_fp16.onnx",
        sha256="513da879ae017cbf1e5c9e03089537f2de6149d4f3549c3e3c480b3ea2204016",
    ),
    # The authors give the archive's MD5, f3f53fa647848b16cf81c913f148a198; projects that found the
    # archive to have it agree on this SHA-256 of the file inside.
    "bfree": Source(
        "model_epoch_best.pth",
        "nonprofit use only (GRIP-UNINA)",
        "https://github.com/grip-unina/B-Free/tree/main/code",
        size="322 MB",
        web="https://www.grip.unina.it/download/prog/B-Free/weights/BFREE_dino2reg4.zip",
        member="BFREE_dino2reg4/model_epoch_best.pth",
        sha256="5948ca78f4d94e820c250d24cdf155035b4a85960443800bfe6bb7f06bffe947",
    ),
    # Computed from the file in the repository at that commit.
    "univfd": Source(
        "fc_weights.pth",
        "MIT",
        "https://github.com/WisconsinAIVision/UniversalFakeDetect",
        size="4 kB, and CLIP's ViT-L/14",
        web=f"{GITHUB}/WisconsinAIVision/UniversalFakeDetect/"
        "76a0e3e60a8a06458707a625d269ba815a2e5919/pretrained_weights/fc_weights.pth",
        sha256="477100745713bcc957beb2b40859536859b6483fd6301b3b9293151b194c7847",
    ),
    # Computed, too. Of the two files there the one whose logits part reals and fakes around 0; the
    # other, of ForenSynths, is above 0 by hundreds for photographs as well.
    "tiny-ladeda": Source(
        "WildRF_Tiny_LaDeDa.pth",
        "research only",
        f"https://github.com/{LADEDA}",
        size="12 kB",
        web=f"{GITHUB}/{LADEDA}/e734562bbb6763f5bb2951099e9dc9a38df5e7dd/"
        "weights/Tiny_LaDeDa/WildRF_Tiny_LaDeDa.pth",
        sha256="5e063100564d2ddfe9bf48074e351c8f2b38855552574a18a0738e7f2a764d80",
    ),
    # As several projects that pin that commit give it.
    "npr": Source(
        "NPR.pth",
        "none stated",
        "https://github.com/chuangchuangtan/NPR-DeepfakeDetection",
        size="17 MB",
        web=f"{GITHUB}/chuangchuangtan/NPR-DeepfakeDetection/"
        "781ced3f7ca2cdc69ec9dd4ef27e8d0b3c07752a/NPR.pth",
        sha256="3939297e9399e0b992f87211610769d87d899de50d56da0204d6cbda2d483a53",
    ),
    # As several projects that pin that commit give it.
    "safe": Source(
        "checkpoint-best.pth",
        "Apache-2.0",
        "https://github.com/Ouxiang-Li/SAFE",
        web=f"{GITHUB}/Ouxiang-Li/SAFE/4e998724651b227def64f5be0cd60c0aa1552c35/"
        "checkpoint/checkpoint-best.pth",
        sha256="b3f5ecfb46a154ed553aaaf4bf3ba59182310726ddb0cbb1fe42bd0e22d2f20e",
    ),
    # The authors' link names no revision, and nobody gives a checksum.
    "cnndetect": Source(
        "blur_jpg_prob0.5.pth",
        "CC BY-NC-SA 4.0",
        "https://github.com/PeterWang512/CNNDetection",
        size="about 270 MB",
        web="https://www.dropbox.com/s/2g2jagq2jn1fd0i/blur_jpg_prob0.5.pth?dl=1",
    ),
    # A release, whose files seldom change; nobody gives their checksums.
    "xception-faces": Source(
        "xception_best.pth",
        "CC BY-NC 4.0",
        f"{DEEPFAKEBENCH}/tag/v1.0.1",
        size="about 90 MB",
        web=f"{DEEPFAKEBENCH}/download/v1.0.1/xception_best.pth",
    ),
    "f3net": Source(
        "f3net_best.pth",
        "CC BY-NC 4.0",
        f"{DEEPFAKEBENCH}/tag/v1.0.1",
        size="about 90 MB",
        web=f"{DEEPFAKEBENCH}/download/v1.0.1/f3net_best.pth",
    ),
    "sbi": Source(
        "FFc23.tar",
        "research only",
        "https://github.com/mapooon/SelfBlendedImages",
    ),
    "freqnet": Source(
        "4-classes-freqnet.pth",
        "see its repository",
        "https://github.com/chuangchuangtan/FreqNet-DeepfakeDetection",
    ),
    "ladeda": Source("ForenSynth_LaDeDa.pth", "research only", f"https://github.com/{LADEDA}"),
    "ladeda-wildrf": Source("WildRF_LaDeDa.pth", "research only", f"https://github.com/{LADEDA}"),
}
