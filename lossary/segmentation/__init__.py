"""Objectives over pixels and boxes: regions, detection, depth and disparity, and how they are measured."""

from __future__ import annotations

from lossary.segmentation.boundary import boundary_f1
from lossary.segmentation.boxes import BoxIoULoss, YOLOLoss, box_iou_loss, yolo_loss
from lossary.segmentation.depth import (
    DisparitySmoothnessLoss,
    LeftRightConsistencyLoss,
    PhotometricLoss,
    ScaleInvariantLogLoss,
    depth_metrics,
    disparity_smoothness_loss,
    left_right_consistency_loss,
    photometric_loss,
    scale_invariant_log_loss,
)
from lossary.segmentation.overlap import (
    DiceLoss,
    LovaszSoftmaxLoss,
    TverskyLoss,
    dice_loss,
    lovasz_softmax_loss,
    tversky_loss,
)

__all__ = [
    "BoxIoULoss",
    "DiceLoss",
    "DisparitySmoothnessLoss",
    "LeftRightConsistencyLoss",
    "LovaszSoftmaxLoss",
    "PhotometricLoss",
    "ScaleInvariantLogLoss",
    "TverskyLoss",
    "YOLOLoss",
    "boundary_f1",
    "box_iou_loss",
    "depth_metrics",
    "dice_loss",
    "disparity_smoothness_loss",
    "left_right_consistency_loss",
    "lovasz_softmax_loss",
    "photometric_loss",
    "scale_invariant_log_loss",
    "tversky_loss",
    "yolo_loss",
]
