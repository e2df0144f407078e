"""Images and batches: digits that come with the package, data sets from your disk, synthetic images for tests."""

from minibn.data.batching import batches, check_array, check_batch_size, check_examples, crop_flip
from minibn.data.idx_files import idx
from minibn.data.sets import TEST_IMAGES, TRAIN_IMAGES, Split, cifar10, digits, fashion_mnist, synthetic

__all__ = ["Split", "TEST_IMAGES", "TRAIN_IMAGES", "batches", "check_array", "check_batch_size", "check_examples", "cifar10",
           "crop_flip", "digits", "fashion_mnist", "idx", "synthetic"]
