//! Gradients of small functions.

use super::products::dot;
use crate::float::exp;
use crate::model::config::Activation;
use crate::model::ops::{GELU_CUBIC, SQRT_2_OVER_PI, each_row};

/// Replaces logits by the gradient of the log-probability of token `drawn`. If `cap` is given, the logits were
/// soft-capped with it; its slope is included.
pub(super) fn gradient_of_logits(row: &mut [f32], drawn: usize, cap: Option<f32>) {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(exp(x - greatest))).sum();
    for (i, x) in row.iter_mut().enumerate() {
        let slope = cap.map_or(1.0, |cap| 1.0 - (*x / cap).powi(2));
        let p = (f64::from(exp(*x - greatest)) / sum) as f32;
        *x = (f32::from(u8::from(i == drawn)) - p) * slope;
    }
}

/// The value of the activation function, and its slope.
pub(super) fn activation(kind: Activation, x: f32) -> (f32, f32) {
    let (steepness, twice_u) = match kind {
        Activation::Silu => (1.0, x),
        Activation::Gelu => (
            2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * x * x),
            2.0 * SQRT_2_OVER_PI * x * (1.0 + GELU_CUBIC * x * x),
        ),
    };
    let sigmoid = 1.0 / (1.0 + exp(-twice_u));
    (x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * steepness)
}

/// Replaces gradients at the outputs of a norm by gradients at its inputs `x`. Each part of a row that is as long as
/// the weight is normed separately.
pub(super) fn norm_backward(eps: f32, x: &[f32], weight: &[f32], gradient: &mut [f32]) {
    let n = weight.len();
    each_row(gradient, n, |i, gradient| {
        let x = &x[i * n..][..n];
        let scale = 1.0 / (dot(x, x) / n as f64 + f64::from(eps)).sqrt();
        gradient.iter_mut().zip(weight).for_each(|(g, w)| *g *= w);
        let along = (dot(gradient, x) * scale * scale / n as f64) as f32;
        for (g, &x) in gradient.iter_mut().zip(x) {
            *g = (*g - x * along) * scale as f32;
        }
    });
}
