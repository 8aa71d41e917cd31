"""Files that say of themselves what they are: by text, EXIF, XMP, or a manifest signed here."""

import datetime
import functools
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
WEBUI = (
    "a cat, Steps: many\nNegative prompt: dog\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 64x64, "
    'Model hash: abc, Model: dream_v8, Lora hashes: "x: 1, y: 2", Version: v1.9.4'
)


def picture(seed: int = 0, size: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(**texts: str) -> bytes:
    """A PNG with texts; "XMP" is its packet."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in texts.items():
        if key == "XMP":
            info.add_itxt("XML:com.adobe.xmp", value)
        else:
            info.add_text(key, value)
    picture().save(file, "PNG", pnginfo=info)
    return file.getvalue()


def jpeg(
    exif: dict[int, Any] | None = None, inner: dict[int, Any] | None = None, **options: Any
) -> bytes:
    """A JPEG with EXIF values by tag, `inner` in the photograph's own part."""
    written, file = Image.Exif(), io.BytesIO()
    for tag, value in (exif or {}).items():
        written[tag] = value
    if inner:
        written.get_ifd(0x8769).update(inner)
    picture().save(file, "JPEG", exif=written, **options)
    return file.getvalue()


def xmp(body: str, attributes: str = "") -> str:
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/" '
        'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
        'xmlns:exif="http://ns.adobe.com/exif/1.0/" '
        f'xmlns:dcterms="http://purl.org/dc/terms/" {attributes}>{body}</rdf:Description></rdf:RDF>'
        '</x:xmpmeta><?xpacket end="w"?>'
    )


CAMERA = {0x010F: "Canon", 0x0110: "Canon EOS R5"}
EXPOSED = {0x829A: 0.01, 0x829D: 2.8, 0x9003: "2021:05:01 10:00:00"}


@functools.cache
def authority() -> tuple[str, str, str]:
    """PEM of a root, of a chain signed by it, and of the signer's key."""
    pytest.importorskip("c2pa")
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(word: str) -> Any:
        return x509.Name(
            [
                x509.NameAttribute(x509.NameOID.COMMON_NAME, word),
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, f"{word} Ltd"),
            ]
        )

    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]

    def certificate(key: Any, subject: str, issuer_key: Any, leaf: bool) -> Any:
        made = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Test Root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=not leaf, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(leaf, False, False, False, False, not leaf, not leaf, False, False),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
        )
        if leaf:
            made = made.add_extension(
                x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
            )
        return made.sign(issuer_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    root = certificate(keys[0], "Test Root", keys[0], False).public_bytes(pem).decode()
    leaf = certificate(keys[1], "Test Maker", keys[0], True).public_bytes(pem).decode()
    key = keys[1].private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return root, leaf + root, key.decode()


def sign(
    *actions: dict[str, Any],
    parent: bytes | None = None,
    part: bytes | None = None,
    shown: bytes | None = None,
    source: bytes | None = None,
) -> bytes:
    """Sign actions about a picture; parent, part: earlier signed pictures that it was made of.

    Skips the test where the library is missing.
    """
    c2pa = pytest.importorskip("c2pa")
    _, chain, key = authority()
    about = {
        "claim_generator_info": [{"name": "Test Camera App", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": list(actions)}}],
    }
    settings = {
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"verify_after_sign": False},
    }
    context = c2pa.Context.from_dict(settings)
    builder = c2pa.Builder(about, context=context)
    for content, relation in ((parent, "parentOf"), (part, "componentOf"), (shown, "inputTo")):
        if content:
            builder.add_ingredient(
                {"title": relation, "relationship": relation}, "image/jpeg", io.BytesIO(content)
            )
    info = c2pa.C2paSignerInfo(b"es256", chain.encode(), key.encode(), None)
    out = io.BytesIO()
    builder.sign(c2pa.Signer.from_info(info), "image/jpeg", io.BytesIO(source or jpeg()), out)
    return out.getvalue()


def action(name: str, source: str = "", agent: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"action": f"c2pa.{name}"}
    return (
        found
        | ({"digitalSourceType": IPTC + source} if source else {})
        | ({"softwareAgent": agent} if agent else {})
    )


CREATED = action("created", "trainedAlgorithmicMedia", "Painter 3")


def another_root() -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Another Root")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()
