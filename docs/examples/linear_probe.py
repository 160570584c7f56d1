"""Score logistic regression on embeddings of a folder with a folder for each class: linear_probe.py FOLDER [LAYER]."""

import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hear_transformers.tiny import load_model


def main(folder: str, layer: str = "12") -> None:
    """Embed every clip once, then cross-validate on the vectors."""
    paths = sorted(map(str, Path(folder).rglob("*.wav")))
    labels = [Path(path).parent.name for path in paths]
    vectors = load_model(layer=int(layer)).encode(paths)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    scores = cross_val_score(classifier, vectors, labels, cv=folds)
    print(f"{len(paths)} clips, {len(set(labels))} classes: accuracy {scores.mean():.3f} +- {scores.std():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
