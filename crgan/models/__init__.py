"""Models that crgan trains: InfoGAN-CR and variational autoencoders."""
