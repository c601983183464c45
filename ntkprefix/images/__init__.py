"""Labelled images from an installed package, a `.npz` file or a folder, all as square uint8 arrays."""

from ntkprefix._extras import extra

with extra("models", "ntkprefix.images"):
    from ntkprefix.images.data import ImageData, stratified
    from ntkprefix.images.pixels import normalise
    from ntkprefix.images.preprocess import Preprocess
    from ntkprefix.images.sources import load_images

__all__ = ["ImageData", "Preprocess", "load_images", "normalise", "stratified"]
