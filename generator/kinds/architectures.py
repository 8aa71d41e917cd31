"""The architectures that `train-generator --generator NAME` knows, on one page.

To add one: write a subclass of `Architecture` in a file of its own and name it here.
"""

from ganscope.generator.kinds import adversarial, autoencoders, stylegan, translation
from ganscope.generator.kinds.architecture import Architecture
from ganscope.registry import Registry

architectures: Registry[Architecture] = Registry("generator architecture")

architectures.register("gan")(adversarial.GAN())
architectures.register("dcgan")(adversarial.DCGAN())
architectures.register("dcgan-upsample")(adversarial.UpsampleDCGAN())
architectures.register("wgan")(adversarial.WGAN())
architectures.register("wgan-gp")(adversarial.WGANGP())
architectures.register("cgan")(adversarial.CGAN())
architectures.register("unrolled")(adversarial.Unrolled())
architectures.register("autoencoder")(autoencoders.Autoencoder())
architectures.register("vae")(autoencoders.VAE())
architectures.register("pix2pix")(translation.Pix2Pix())
architectures.register("cyclegan")(translation.CycleGAN())
architectures.register("stylegan")(stylegan.StyleGAN())
