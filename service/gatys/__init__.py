"""Gatys' optimisation and what it shares with training: the VGG features and the losses. Needs torch."""
