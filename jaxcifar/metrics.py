"""What logits are worth: accuracy, top-5, negative log-likelihood, calibration error."""

import numpy as np
from scipy.special import log_softmax, logsumexp

BINS = 15


def summarise(log_p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of one network from log-probabilities [N,C] and labels [N], in float64.

    accuracy and top5 are fractions, nll is in nats, ece the expected calibration error with 15
    equal-width bins of confidence (Guo et al. 2017, eq. 3). Of equal classes the first ranks higher.
    """
    true = log_p[np.arange(len(labels)), labels]
    earlier = np.arange(log_p.shape[1]) < labels[:, None]
    rank = np.where(earlier, log_p >= true[:, None], log_p > true[:, None]).sum(1)
    predicted = log_p.argmax(1)
    return {
        'accuracy': float((predicted == labels).mean()),
        'top5': float((rank < 5).mean()),
        'nll': float(-true.mean()),
        'ece': calibration_error(np.exp(log_p.max(1)), predicted == labels),
    }


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Σ_b |B_b|/N · |accuracy(B_b) - confidence(B_b)| over bins (lower, upper]."""
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """log softmax over the classes in float64."""
    return log_softmax(logits.astype(np.float64), -1)


def mean_of_probabilities(log_p: np.ndarray) -> np.ndarray:
    """The ensemble of [K,N,C] log-probabilities: log of the members' mean probability, [N,C]."""
    return logsumexp(log_p, 0) - np.log(len(log_p))
