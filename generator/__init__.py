"""GANs and their kin: networks, losses, training and sampling."""
