"""Score logits: accuracy, top-5, negative log-likelihood, calibration error."""

import numpy as np
import scipy  # loads its parts when they are used; stats takes most of a second, and few need it
from scipy.special import log_softmax, logsumexp

BINS = 15
CHANCE = 0.05  # the p-value at or above which a difference is not claimed
MANY, FEW = 100, 20  # training images: more than these make 'many', fewer than those 'few'


def summarise(
    log_p: np.ndarray, labels: np.ndarray, class_counts: np.ndarray | None = None
) -> dict[str, float]:
    """Return metrics of one network from log-probabilities [N,C] and labels [N], in float64.

    accuracy and top5 are fractions, nll is in nats, ece the expected calibration error with 15
    equal-width bins of confidence (Guo et al. 2017, eq. 3). Of equally likely classes the first ranks higher.
    `class_counts` [C], the training images of a long tail, adds the mean recall of its groups of classes.
    """
    true = log_p[np.arange(len(labels)), labels]
    # Ties must be broken as argmax breaks them, or top-1 and accuracy would disagree.
    earlier = np.arange(log_p.shape[1]) < labels[:, None]
    rank = np.where(earlier, log_p >= true[:, None], log_p > true[:, None]).sum(1)
    predicted = log_p.argmax(1)
    groups = {} if class_counts is None else group_recalls(predicted == labels, labels, class_counts)
    return {
        'accuracy': float((predicted == labels).mean()),
        'top5': float((rank < 5).mean()),
        'nll': float(-true.mean()),
        'ece': calibration_error(np.exp(log_p.max(1)), predicted == labels),
        **groups,
    }


def compare_fused(
    logits: np.ndarray, names: list[str], labels: np.ndarray, class_counts: np.ndarray | None = None
) -> dict:
    """Return the scores of a fused prediction, the last of logits [K+1,N,C], and of what it has to beat.

    The best member is chosen on these very images, which makes it harder to beat. `beats_mean` says whether
    the fused prediction is more accurate than both means; p_value is the larger p-value of McNemar's tests.
    """
    members, log_p = logits[:-1], log_probabilities(logits)
    predictions = {
        'fused': log_p[-1],
        'mean_of_logits': log_probabilities(members.mean(0)),
        'mean_of_probabilities': mean_of_probabilities(log_p[:-1]),
    }
    # The fused prediction has to beat both ways of averaging, and the best member.
    found: dict = {name: summarise(p, labels, class_counts) for name, p in predictions.items()}
    scores = [summarise(p, labels, class_counts) for p in log_p[:-1]]
    best = max(range(len(scores)), key=lambda k: scores[k]['accuracy'])
    found['best_expert'] = {'name': names[best], **scores[best]}
    means = found['mean_of_logits'], found['mean_of_probabilities']
    found['beats_mean'] = all(found['fused']['accuracy'] > mean['accuracy'] for mean in means)
    # The larger p-value is the cautious one: a claim must hold against both means.
    fused, *others = (p.argmax(1) == labels for p in predictions.values())
    found['p_value'] = max(mcnemar(fused, other) for other in others)
    return found


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Return the p-value for two networks being right equally often on the same images, [N] bool each.

    The test is two-sided and exact (McNemar 1947, with the binomial distribution). It accounts for the random
    choice of test images, but not for randomness in training.
    """
    only = int((a & ~b).sum()), int((b & ~a).sum())
    # Where both are right on the same images there is nothing to test.
    return float(scipy.stats.binomtest(only[0], sum(only)).pvalue) if any(only) else 1.0


def verdict(found: dict) -> str:
    """Return 'beats the mean of the experts (p = 0.003)', from what `compare_fused` returned."""
    p = found.get('p_value')
    better = 'beats' if p is None or p < CHANCE else 'is not significantly better than'
    text = f'{better if found["beats_mean"] else "does NOT beat"} the mean of the experts'
    return text if p is None else f'{text} (p = {p:.2g})'


def class_recalls(correct: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the share of each class's images that are classified correctly, [C]; NaN without images."""
    images = np.bincount(labels, minlength=classes)
    # A class without images is 0/0, and NaN is the honest recall.
    with np.errstate(invalid='ignore'):
        return np.bincount(labels, correct, classes) / images


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the share of each class's images classified as each class, [C,C]; rows are true classes.

    The row of a class without images is NaN.
    """
    counts = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    with np.errstate(invalid='ignore'):  # as in `class_recalls`
        return counts / counts.sum(1, keepdims=True)


def worst_mistakes(log_p: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of up to `most` wrong rows of log-probabilities [N,C], the most confident first."""
    wrong = np.flatnonzero(log_p.argmax(1) != labels)
    return wrong[np.argsort(-log_p[wrong].max(1), kind='stable')][:most]


def class_groups(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the classes of each group, [C] bool, by their training images; empty groups are left out.

    many: more than 100, medium: 20 to 100, few: fewer than 20 (Liu et al. 2019). head and tail are
    the halves of the classes with more and with fewer images.
    """
    # Sorting twice gives ranks; a stable sort lets the first of equal classes be the larger.
    halves = np.argsort(np.argsort(-counts, kind='stable'), kind='stable') < (len(counts) + 1) // 2
    groups = {
        'many': counts > MANY,
        'medium': (counts >= FEW) & (counts <= MANY),
        'few': counts < FEW,
        'head': halves,
        'tail': ~halves,
    }
    return {name: classes for name, classes in groups.items() if classes.any()}


def group_names(class_counts: np.ndarray | None) -> tuple[str, ...]:
    """Return the keys of `group_recalls` for labels of every class; none without a long tail."""
    return () if class_counts is None else ('mean_recall', *class_groups(class_counts))


def group_recalls(correct: np.ndarray, labels: np.ndarray, class_counts: np.ndarray) -> dict[str, float]:
    """Return the mean recall of all classes (mean_recall) and of each group that occurs in the labels.

    Every class has the same weight, so this is the accuracy on a balanced test set, even if this set is not.
    """
    recalls = class_recalls(correct, labels, len(class_counts))
    groups = {'mean_recall': np.ones(len(class_counts), bool), **class_groups(class_counts)}
    there = {name: recalls[g & ~np.isnan(recalls)] for name, g in groups.items()}
    return {name: float(r.mean()) for name, r in there.items() if len(r)}


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return Σ_b |B_b|/N · |accuracy(B_b) - confidence(B_b)| over bins (lower, upper]."""
    gaps = np.bincount(_bin(confidence, bins), correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, list]:
    """Return a reliability diagram: each bin's number of images, sum of confidences and number of hits."""
    index = _bin(confidence, bins)
    columns = {'images': None, 'confidence': confidence, 'correct': correct}
    return {name: np.bincount(index, weights, bins).tolist() for name, weights in columns.items()}


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    # Bins are closed above, so that a confidence of exactly 1 falls into the last.
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return log softmax over the classes in float64."""
    return log_softmax(logits.astype(np.float64), -1)


def mean_of_probabilities(log_p: np.ndarray) -> np.ndarray:
    """Return the ensemble of [K,N,C] log-probabilities: log of the members' mean probability, [N,C]."""
    return logsumexp(log_p, 0) - np.log(len(log_p))


def mean_and_std(members: list[dict]) -> tuple[dict, dict]:
    """Return (mean, standard deviation) over members; the latter is the sample's, and 0 for one member."""
    values = {k: np.array([m[k] for m in members]) for k in members[0]}
    # One member has no sample deviation: 0 keeps JSON free of NaN.
    ddof = min(1, len(members) - 1)
    mean = {k: float(v.mean()) for k, v in values.items()}
    return mean, {k: float(v.std(ddof=ddof)) for k, v in values.items()}
