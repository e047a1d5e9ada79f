"""Names of the data sets of lt_cb. Imports no torch."""

MODULES = {
    **dict.fromkeys(("Digits", "CIFAR10", "CIFAR100", "FashionMNIST", "SideBySide"), "arrays"),
    **dict.fromkeys(("ImageFolder", "ILSVRC2012", "INaturalist2017", "INaturalist2018"), "files"),
    **dict.fromkeys(("ImageNetLT", "PlacesLT"), "files"),
    "Manifest": "tables",
    "COCO": "coco",
}
"""Module in ``lt_cb.data.sources`` of each data set, by class name."""

OWN_IMAGES = ("ImageFolder", "Manifest", "COCO")  # read images of the user; other data sets are published
ROOT = "data"  # the default folder of published data sets
PACKAGE = "lt_cb.data.sources"
_BY_PLAIN_NAME = {name.lower(): name for name in MODULES} | {f"inat{y}": f"INaturalist{y}" for y in (2017, 2018)}


def canonical_source(name: str) -> str:
    """Return the class name of a data set, such as ``CIFAR10`` for ``cifar-10``; any other name is unchanged."""
    package, _, last = name.rpartition(".")
    if package and not f"{package}.".startswith(f"{PACKAGE}."):
        return name
    return _BY_PLAIN_NAME.get(last.lower().replace("_", "").replace("-", ""), name)
