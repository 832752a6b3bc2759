"""Published figures to stand beside: ViT-B/16, 16 shots, 5,000 queries, per cent, by registry name.

Zero-shot is as others published it; the methods' rows are read off the radar chart in ZIP's
repository (about ± 0.5). Their mean is over these 13 data sets.
"""

DATASETS = (
    "Caltech101",
    "OxfordPets",
    "OxfordFlowers",
    "Food101",
    "FGVCAircraft",
    "SUN397",
    "DescribableTextures",
    "Svhn",
    "EuroSAT",
    "Resisc45",
    "CLEVR",
    "UCF101",
    "ImageNet",
)
FIGURES = {
    "zero-shot": (92.9, 89.2, 71.3, 86.1, 24.7, 62.5, 44.4, 17.9, 47.6, None, None, 66.8, 66.7),
    "BAR": (91.6, 85.6, 64.5, 83.0, 21.3, 62.4, 42.3, 19.9, 50.6, 53.7, 18.2, 63.1, 63.5),
    "BlackVIP": (91.8, 86.8, 63.0, 83.5, 21.1, 62.2, 42.7, 27.5, 44.1, 55.1, 25.9, 63.7, 65.0),
    "BPT-VLM": (88.0, 89.4, 66.3, 84.2, 23.6, 53.1, 40.1, 29.8, 52.4, 56.0, 16.5, 64.4, 55.2),
    "ZIP": (93.1, 92.3, 69.8, 86.4, 26.7, 63.2, 47.7, 47.8, 64.0, 66.2, 28.5, 69.5, 65.6),
}
