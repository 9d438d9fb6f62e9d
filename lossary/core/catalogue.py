"""Losses and metrics by task: what each computes, and the tested function that computes it.

What PyTorch, torchmetrics or scikit-learn has is named where it is there, and not wrapped; the rest is in Lossary's
families. An entry that needs a package beyond these says so in its note.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, Literal, get_args

Kind = Literal["loss", "metric"]
Task = Literal[
    "regression",
    "classification",
    "detection",
    "segmentation",
    "face",
    "depth",
    "generation",
    "language",
    "rag",
    "multi_loss",
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A loss or metric.

    Attributes:
        name: Its usual name.
        task: What it is for.
        kind: ``loss`` or ``metric``.
        formula: What it computes, x being the prediction and y the truth.
        implementation: Path of the function or class to use.
        note: How to call it for that, where this is not plain, or what else it needs.
    """

    name: str
    task: Task
    kind: Kind
    formula: str
    implementation: str
    note: str = ""

    def load(self) -> Callable[..., Any]:
        """Import the implementation."""
        module, _, name = self.implementation.rpartition(".")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


def catalogue() -> list[Entry]:
    """Every loss and metric of the survey, by task.

    Returns:
        Entries with name, task, kind, formula and the path of the implementation to use.

    Example:
        >>> import lossary
        >>> [entry.implementation for entry in lossary.catalogue() if entry.name == "log-cosh"]
        ['lossary.regression.log_cosh_loss']

    Source:
        The tables of Terven, Cordova-Esparza, Romero-Gonzalez, Ramirez-Pedraza, Chavez-Urbiola: Loss Functions and
        Metrics in Deep Learning (Artificial Intelligence Review 2025, arXiv 2307.02694).
    """
    return list(_ENTRIES)


def find(task: Task | None = None, kind: Kind | None = None) -> list[Entry]:
    """The entries for a task, of a kind.

    Args:
        task: ``regression``, ``classification``, ``detection``, ``segmentation``, ``face``, ``depth``, ``generation``,
            ``language``, ``rag`` (retrieval-augmented generation) or ``multi_loss``; None for all.
        kind: ``loss`` or ``metric``; None for both.

    Returns:
        The entries.

    Raises:
        ValueError: There is no such task or kind.

    Example:
        >>> import lossary
        >>> [entry.name for entry in lossary.find(task="rag")][:2]
        ['context precision', 'context recall']
    """
    for word, value, known in (("task", task, get_args(Task)), ("kind", kind, get_args(Kind))):
        if value is not None and value not in known:
            raise ValueError(f"{word} is {value!r}; wanted one of {', '.join(known)}.")
    return [entry for entry in _ENTRIES if task in (None, entry.task) and kind in (None, entry.kind)]


def _entries(task: Task, kind: Kind, *rows: tuple[str, ...]) -> list[Entry]:
    return [Entry(row[0], task, kind, *row[1:]) for row in rows]


_ENTRIES: list[Entry] = [
    *_entries(
        "regression",
        "loss",
        ("squared error", "mean (x - y)^2", "torch.nn.MSELoss"),
        ("absolute error", "mean |x - y|", "torch.nn.L1Loss"),
        ("Huber", "e^2 / 2 if |e| <= d, else d (|e| - d / 2)", "torch.nn.HuberLoss"),
        ("smooth L1", "e^2 / (2 b) if |e| < b, else |e| - b / 2", "torch.nn.SmoothL1Loss"),
        ("log-cosh", "mean log cosh(x - y)", "lossary.regression.log_cosh_loss"),
        ("quantile", "mean max(q (y - x), (q - 1) (y - x))", "lossary.regression.quantile_loss"),
        ("Poisson", "mean exp(x) - y x", "torch.nn.PoissonNLLLoss"),
    ),
    *_entries(
        "regression",
        "metric",
        (
            "root mean squared error",
            "sqrt mean (x - y)^2",
            "torchmetrics.functional.mean_squared_error",
            "squared=False",
        ),
        (
            "mean absolute percentage error",
            "mean |x - y| / |y|",
            "torchmetrics.functional.mean_absolute_percentage_error",
        ),
        (
            "symmetric mean absolute percentage error",
            "mean 2 |x - y| / (|x| + |y|)",
            "torchmetrics.functional.symmetric_mean_absolute_percentage_error",
        ),
        ("R^2", "1 - sum (x - y)^2 / sum (y - mean y)^2", "torchmetrics.functional.r2_score"),
        (
            "adjusted R^2",
            "1 - (1 - R^2) (n - 1) / (n - k - 1)",
            "torchmetrics.functional.r2_score",
            "adjusted=k, the number of features",
        ),
        ("pinball", "mean max(q (y - x), (q - 1) (y - x))", "sklearn.metrics.mean_pinball_loss", "alpha=q"),
    ),
    *_entries(
        "classification",
        "loss",
        ("binary cross-entropy", "-y log p - (1 - y) log(1 - p)", "torch.nn.BCEWithLogitsLoss", "takes logits"),
        (
            "weighted binary cross-entropy",
            "-w y log p - (1 - y) log(1 - p)",
            "torch.nn.BCEWithLogitsLoss",
            "pos_weight=w",
        ),
        ("cross-entropy", "-log p_y", "torch.nn.CrossEntropyLoss", "takes logits; labels are indices or probabilities"),
        ("sparse cross-entropy", "-log p_y", "torch.nn.CrossEntropyLoss", "labels as indices"),
        (
            "label smoothing",
            "-sum_k ((1 - a) [k = y] + a / C) log p_k",
            "torch.nn.CrossEntropyLoss",
            "label_smoothing=a",
        ),
        ("negative log-likelihood", "-log p_y", "torch.nn.NLLLoss", "takes log-probabilities"),
        ("focal", "-(1 - p_y)^g log p_y", "lossary.classification.focal_loss"),
        ("PolyLoss", "-log p_y + e (1 - p_y)", "lossary.classification.poly1_cross_entropy_loss"),
        ("hinge", "max(0, 1 - y f), y = -1 or 1", "torchmetrics.functional.classification.binary_hinge_loss"),
        ("multi-class hinge", "mean_k max(0, 1 - f_y + f_k)", "torch.nn.MultiMarginLoss"),
    ),
    *_entries(
        "classification",
        "metric",
        ("accuracy", "(TP + TN) / all", "sklearn.metrics.accuracy_score"),
        ("precision", "TP / (TP + FP)", "sklearn.metrics.precision_score"),
        ("recall", "TP / (TP + FN), the true positive rate", "sklearn.metrics.recall_score"),
        ("F1", "2 P R / (P + R)", "sklearn.metrics.f1_score"),
        ("specificity", "TN / (TN + FP)", "torchmetrics.functional.classification.binary_specificity"),
        (
            "false positive rate",
            "FP / (FP + TN)",
            "torchmetrics.functional.classification.binary_specificity",
            "1 - it",
        ),
        (
            "negative predictive value",
            "TN / (TN + FN)",
            "torchmetrics.functional.classification.binary_negative_predictive_value",
        ),
        ("false discovery rate", "FP / (TP + FP)", "sklearn.metrics.precision_score", "1 - it"),
        ("confusion matrix", "counts of (truth, guess)", "sklearn.metrics.confusion_matrix"),
        ("precision-recall curve", "P and R at every threshold", "sklearn.metrics.precision_recall_curve"),
        ("ROC", "TPR against FPR at every threshold", "sklearn.metrics.roc_curve"),
        ("AUC", "P(score of a positive > score of a negative)", "sklearn.metrics.roc_auc_score"),
    ),
    *_entries(
        "detection",
        "loss",
        ("smooth L1 of boxes", "e^2 / (2 b) if |e| < b, else |e| - b / 2", "torch.nn.SmoothL1Loss"),
        ("IoU", "1 - IoU", "lossary.segmentation.box_iou_loss"),
        ("GIoU", "1 - IoU + (|hull| - |union|) / |hull|", "lossary.segmentation.box_iou_loss", "variant='giou'"),
        ("DIoU", "1 - IoU + rho^2 / c^2", "lossary.segmentation.box_iou_loss", "variant='diou'"),
        ("CIoU", "1 - IoU + rho^2 / c^2 + a v", "lossary.segmentation.box_iou_loss", "variant='ciou'"),
        ("focal of objects", "-a_t (1 - p_t)^g log p_t", "lossary.classification.sigmoid_focal_loss"),
        ("YOLO", "5 boxes + objects + 0.5 others + classes, squared errors", "lossary.segmentation.yolo_loss"),
    ),
    *_entries(
        "detection",
        "metric",
        (
            "average precision",
            "area under precision, made falling, and recall",
            "torchmetrics.detection.mean_ap.MeanAveragePrecision",
            "iou_thresholds=[0.5], its map_50; needs torchvision and pycocotools",
        ),
        (
            "11-point average precision",
            "mean over recalls 0, 0.1, ..., 1 of the largest precision from there on",
            "torchmetrics.detection.mean_ap.MeanAveragePrecision",
            "rec_thresholds=[i / 10 for i in range(11)], iou_thresholds=[0.5]; needs torchvision and pycocotools",
        ),
        (
            "mean average precision",
            "mean over classes and IoU 0.50 to 0.95 of the area under precision and recall",
            "torchmetrics.detection.mean_ap.MeanAveragePrecision",
            "needs torchvision and pycocotools",
        ),
        (
            "average recall",
            "mean over classes and IoU 0.50 to 0.95 of the largest recall",
            "torchmetrics.detection.mean_ap.MeanAveragePrecision",
            "its mar_100; needs torchvision and pycocotools",
        ),
        ("frames per second", "images / seconds", "torch.utils.benchmark.Timer", "batch size / its timeit(n).mean"),
    ),
    *_entries(
        "segmentation",
        "loss",
        ("pixel cross-entropy", "-log p_y", "torch.nn.CrossEntropyLoss", "logits (N, C, H, W), labels (N, H, W)"),
        ("soft IoU", "1 - I / U", "lossary.segmentation.tversky_loss", "alpha=1, beta=1"),
        ("Dice", "1 - 2 I / (A + B)", "lossary.segmentation.dice_loss"),
        ("Tversky", "1 - TP / (TP + a FP + b FN)", "lossary.segmentation.tversky_loss"),
        ("pixel focal", "-(1 - p_y)^g log p_y", "lossary.classification.focal_loss"),
        (
            "Lovász-softmax",
            "sum of sorted errors times steps of the Jaccard loss",
            "lossary.segmentation.lovasz_softmax_loss",
        ),
        (
            "boundary",
            "mean p phi, phi the signed distance to the true outline, negative inside",
            "scipy.ndimage.distance_transform_edt",
            "phi = it(1 - y) - it(y) once for each image; then (softmax * phi).mean()",
        ),
        (
            "Hausdorff distance as a loss",
            "mean (p - y)^2 (d_p^2 + d_y^2), d the distances to the outlines of p > 1/2 and of y",
            "scipy.ndimage.distance_transform_edt",
            "d = it(mask) + it(1 - mask), constants to the gradient",
        ),
    ),
    *_entries(
        "segmentation",
        "metric",
        (
            "pixel accuracy",
            "right pixels / all",
            "torchmetrics.functional.classification.multiclass_accuracy",
            "average='micro'",
        ),
        ("mean IoU", "mean over classes of I / U", "torchmetrics.functional.segmentation.mean_iou"),
        ("Dice score", "2 I / (A + B)", "torchmetrics.functional.segmentation.dice_score"),
        (
            "Hausdorff distance",
            "largest distance to the other outline",
            "torchmetrics.functional.segmentation.hausdorff_distance",
        ),
        ("boundary F1", "F1 of outlines within a tolerance", "lossary.segmentation.boundary_f1"),
        ("panoptic quality", "sum IoU / (TP + FP / 2 + FN / 2)", "torchmetrics.functional.detection.panoptic_quality"),
    ),
    *_entries(
        "face",
        "loss",
        ("softmax", "-log softmax(W x)_y", "torch.nn.CrossEntropyLoss", "after a linear layer"),
        ("A-Softmax", "-log softmax, cos(m theta_y) scaled by |x|", "lossary.embedding.sphereface_loss"),
        ("CosFace", "-log softmax, s (cos theta_y - m)", "lossary.embedding.cosface_loss"),
        ("ArcFace", "-log softmax, s cos(theta_y + m)", "lossary.embedding.arcface_loss"),
        ("centre loss", "|x - c_y|^2 / 2", "lossary.embedding.center_loss"),
        (
            "contrastive",
            "d if alike, else max(0, m - d)",
            "torch.nn.HingeEmbeddingLoss",
            "on distances; y = 1 if alike, else -1",
        ),
        ("triplet", "max(0, d(a, p) - d(a, n) + m)", "torch.nn.TripletMarginLoss"),
        ("Barlow Twins", "sum (1 - C_ii)^2 + l sum C_ij^2", "lossary.embedding.barlow_twins_loss"),
        ("SimSiam", "-cos(p, stopgrad z)", "torch.nn.functional.cosine_similarity", "z.detach(), negated"),
    ),
    *_entries(
        "face",
        "metric",
        ("verification ROC", "TPR against FPR of pairs", "sklearn.metrics.roc_curve"),
        (
            "TAR at FAR",
            "largest TPR at an FPR of at most a",
            "torchmetrics.functional.classification.binary_sensitivity_at_specificity",
            "min_specificity=1 - a",
        ),
        ("equal error rate", "error where FPR = FNR", "torchmetrics.functional.classification.binary_eer"),
    ),
    *_entries(
        "depth",
        "loss",
        ("L1 of depth", "mean |x - y|", "torch.nn.L1Loss"),
        ("L2 of depth", "mean (x - y)^2", "torch.nn.MSELoss"),
        ("berHu", "|e| if |e| <= c, else (e^2 + c^2) / (2 c)", "lossary.regression.berhu_loss"),
        (
            "scale-invariant log",
            "mean d^2 - l (mean d)^2, d = log x - log y",
            "lossary.segmentation.scale_invariant_log_loss",
        ),
        (
            "SSIM",
            "1 - SSIM",
            "torchmetrics.functional.image.structural_similarity_index_measure",
            "1 - it; differentiable",
        ),
        ("photometric", "a (1 - SSIM) / 2 + (1 - a) |x - y|", "lossary.segmentation.photometric_loss"),
        (
            "disparity smoothness",
            "mean |dx D| exp(-|dx I|) + the same in y",
            "lossary.segmentation.disparity_smoothness_loss",
        ),
        ("left-right consistency", "|d_l(x) - d_r(x - d_l(x))|", "lossary.segmentation.left_right_consistency_loss"),
    ),
    *_entries(
        "depth",
        "metric",
        *(
            (name, formula, "lossary.segmentation.depth_metrics", f"its {name}")
            for name, formula in (
                ("abs_rel", "mean |x - y| / y"),
                ("sq_rel", "mean (x - y)^2 / y"),
                ("rmse", "sqrt mean (x - y)^2"),
                ("rmse_log", "sqrt mean (log x - log y)^2"),
                ("delta1", "share of max(x / y, y / x) < 1.25; delta2 and delta3 with its powers"),
            )
        ),
    ),
    *_entries(
        "generation",
        "loss",
        ("reconstruction", "mean (x - y)^2", "torch.nn.MSELoss"),
        ("Gaussian KL", "-sum (1 + log v - m^2 - v) / 2", "lossary.generative.gaussian_kl_loss"),
        *(
            (f"{name} GAN", formula, "lossary.generative.adversarial_losses", f"kind={kind!r}")
            for name, kind, formula in (
                ("minimax", "minimax", "softplus(-r) + softplus(f); -softplus(f)"),
                ("non-saturating", "non_saturating", "softplus(-r) + softplus(f); softplus(-f)"),
                ("least-squares", "least_squares", "(r - 1)^2 / 2 + f^2 / 2; (f - 1)^2 / 2"),
                ("hinge", "hinge", "max(0, 1 - r) + max(0, 1 + f); -f"),
                ("Wasserstein", "wasserstein", "f - r; -f"),
            )
        ),
        ("gradient penalty", "10 (|grad f| - 1)^2", "lossary.generative.gradient_penalty"),
        ("diffusion", "mean (eps - eps_hat)^2", "torch.nn.MSELoss", "between the noise and its prediction"),
        (
            "flow likelihood",
            "-log p(f(x)) - log |det df/dx|",
            "torch.distributions.TransformedDistribution",
            "-log_prob",
        ),
        ("perceptual", "mean (phi(x) - phi(y))^2", "torch.nn.MSELoss", "between features of a trained network"),
        ("style", "|G(x) - G(y)|^2, Gram matrices", "lossary.generative.style_loss"),
    ),
    *_entries(
        "generation",
        "metric",
        ("PSNR", "10 log10(range^2 / MSE)", "torchmetrics.functional.image.peak_signal_noise_ratio"),
        ("SSIM score", "structural similarity", "torchmetrics.functional.image.structural_similarity_index_measure"),
        (
            "Inception score",
            "exp E KL(p(y | x) || p(y))",
            "torchmetrics.image.inception.InceptionScore",
            "needs torch-fidelity",
        ),
        (
            "FID",
            "Fréchet distance of Inception features",
            "torchmetrics.image.fid.FrechetInceptionDistance",
            "needs torch-fidelity",
        ),
        (
            "Fréchet distance",
            "|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))",
            "lossary.generative.frechet_distance",
        ),
    ),
    *_entries(
        "language",
        "loss",
        ("token cross-entropy", "-log p_y", "torch.nn.CrossEntropyLoss", "logits (N, V)"),
        ("token hinge", "mean_k max(0, 1 - f_y + f_k)", "torch.nn.MultiMarginLoss"),
        ("cosine", "1 - cos if alike, else max(0, cos - m)", "torch.nn.CosineEmbeddingLoss"),
        ("margin ranking", "max(0, -y (x1 - x2) + m)", "torch.nn.MarginRankingLoss"),
        ("CTC", "-log of the summed probability of all alignments", "torch.nn.CTCLoss"),
        ("minimum risk", "sum_s softmax(a log p)_s risk_s", "lossary.language.minimum_risk_loss"),
        ("REINFORCE", "-(r - b) log p", "lossary.language.reinforce_loss"),
    ),
    *_entries(
        "language",
        "metric",
        ("BLEU", "brevity x geometric mean of n-gram precisions", "torchmetrics.functional.text.bleu_score"),
        (
            "ROUGE",
            "n-gram and longest-subsequence recall and F1",
            "torchmetrics.functional.text.rouge_score",
            "needs nltk",
        ),
        ("perplexity", "exp mean -log p", "torchmetrics.functional.text.perplexity"),
        ("word error rate", "edits of words / words", "torchmetrics.functional.text.word_error_rate"),
        ("character error rate", "edits of characters / characters", "torchmetrics.functional.text.char_error_rate"),
        (
            "METEOR",
            "F of matched words, stems and synonyms, less for more pieces",
            "nltk.translate.meteor_score.meteor_score",
            "needs nltk and its WordNet",
        ),
        ("exact match and F1", "of answers, as in SQuAD", "torchmetrics.functional.text.squad"),
    ),
    *_entries(
        "rag",
        "metric",
        ("context precision", "sum_k r_k P@k / sum_k r_k", "lossary.retrieval.context_precision"),
        ("context recall", "supported / statements of the reference", "lossary.retrieval.context_recall"),
        ("faithfulness", "supported / statements of the answer", "lossary.retrieval.faithfulness"),
        ("answer relevance", "mean cosine of the question with generated ones", "lossary.retrieval.answer_relevance"),
        ("answer correctness", "0.75 F1 + 0.25 similarity", "lossary.retrieval.answer_correctness"),
    ),
    *_entries(
        "multi_loss",
        "loss",
        ("fixed weights", "sum_k w_k L_k", "lossary.WeightedSum"),
    ),
]
