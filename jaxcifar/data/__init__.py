"""Images from disk to the devices: datasets, splits, loaders, augmentation."""
