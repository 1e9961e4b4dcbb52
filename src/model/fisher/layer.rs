//! A layer's forward pass, which keeps all intermediate values, and its backward pass.

use super::attention::Attention;
use super::backward::{Backward, MatrixInputs};
use super::feed_forward;
use super::gradients::norm_backward;
use super::products::sum_up;
use crate::isa::Isa;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::ops::NormHeads;
use crate::model::ops::{add, apply, each_row, norm, rotate};
use crate::model::role::Role;
use crate::model::weights::{Layer, Linear};
use crate::simd::run_loop;

/// One layer and the angles of the positions.
pub(super) struct LayerWork<'w, 'a> {
    pub(super) number: usize,
    pub(super) layer: &'w Layer<'a>,
    pub(super) cos: &'w [f32],
    pub(super) sin: &'w [f32],
}

/// The intermediate values of a layer, one row per token. For norms, their inputs are kept.
pub(super) struct Forward {
    pub(super) tokens: usize,
    pub(super) attn_normed: Vec<f32>,
    pub(super) query_raw: Vec<f32>,
    pub(super) key_raw: Vec<f32>,
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) attn_output: Vec<f32>,
    pub(super) entered: Vec<f32>,
    pub(super) between: Vec<f32>,
    pub(super) feed_forward: feed_forward::Values,
    /// What feed-forward adds to the states, before its norm.
    pub(super) down: Vec<f32>,
}

impl LayerWork<'_, '_> {
    /// The computation of [`Model::evaluate`]; keeps all intermediate values. Keys and values are f32 here.
    pub(super) fn forward(
        &self,
        isa: Isa,
        config: &Config,
        states: &[f32],
    ) -> Result<Forward, ModelError> {
        let layer = self.layer;
        let tokens = states.len() / config.n_embd;
        let linear = |linear: &Linear<'_>, x: &[f32]| {
            let mut out = vec![0f32; tokens * linear.matrix.rows()];
            apply(isa, linear, x, &mut out).map(|()| out)
        };
        let normed = |states: &[f32], weight: &[f32]| {
            let mut out = vec![0f32; states.len()];
            norm(isa, config, states, weight, &mut out);
            out
        };
        let attn_normed = normed(states, &layer.attn_norm);
        let query_raw = linear(&layer.query, &attn_normed)?;
        let key_raw = linear(&layer.key, &attn_normed)?;
        let value = linear(&layer.value, &attn_normed)?;
        let mut query = query_raw.clone();
        let mut key = key_raw.clone();
        self.heads(isa, config, &mut query, config.n_query(), layer.query_norm.as_deref());
        self.heads(isa, config, &mut key, config.n_key(), layer.key_norm.as_deref());
        self.warm(config, &mut query);
        let attention = Attention::new(config, self.number, tokens);
        let attended = attention.forward(&query, &key, &value)?;

        let attn_output = linear(&layer.attn_output, &attended)?;
        let mut between = states.to_vec();
        add(isa, config, &mut between, &mut attn_output.clone(), layer.attn_post_norm.as_deref());

        let ffn_normed = normed(&between, &layer.ffn_norm);
        let (down, feed_forward) =
            feed_forward::forward(isa, config, &layer.feed_forward, ffn_normed)?;
        let entered = states.to_vec();
        Ok(Forward {
            tokens,
            attn_normed,
            query_raw,
            key_raw,
            query,
            key,
            value,
            attended,
            attn_output,
            entered,
            between,
            feed_forward,
            down,
        })
    }

    /// Replaces the gradient at the layer's outputs by the gradient at its inputs.
    pub(super) fn backward(
        &self,
        back: &mut Backward<'_>,
        forward: &Forward,
        gradient: &mut [f32],
    ) -> Result<(), ModelError> {
        let Self { number, layer, .. } = *self;
        let config = back.config;
        let eps = config.norm_eps;

        let mut down = gradient.to_vec();
        if let Some(weight) = &layer.ffn_post_norm {
            norm_backward(eps, &forward.down, weight, &mut down);
        }
        let (network, values) = (&layer.feed_forward, &forward.feed_forward);
        let mut normed = feed_forward::backward(back, number, network, values, &down)?;
        norm_backward(eps, &forward.between, &layer.ffn_norm, &mut normed);
        sum_up(gradient, &normed);

        let mut attended = gradient.to_vec();
        if let Some(weight) = &layer.attn_post_norm {
            norm_backward(eps, &forward.attn_output, weight, &mut attended);
        }
        let inputs = MatrixInputs::new(&forward.attended, config.n_query())?;
        let attended =
            back.linear(Role::AttnOutput, number, &layer.attn_output, &inputs, &attended)?;
        let attention = Attention::new(config, number, forward.tokens);
        let [mut query, mut key, value] =
            attention.backward(&forward.query, &forward.key, &forward.value, &attended)?;
        self.warm(config, &mut query);
        let sin: Vec<f32> = self.sin.iter().map(|sin| -sin).collect();
        let straight = LayerWork { sin: &sin, ..*self };
        straight.heads(back.isa, config, &mut query, config.n_query(), None);
        straight.heads(back.isa, config, &mut key, config.n_key(), None);
        if let Some(weight) = &layer.query_norm {
            norm_backward(eps, &forward.query_raw, weight, &mut query);
        }
        if let Some(weight) = &layer.key_norm {
            norm_backward(eps, &forward.key_raw, weight, &mut key);
        }
        let inputs = MatrixInputs::new(&forward.attn_normed, config.n_embd)?;
        let mut normed = back.linear(Role::AttnQ, number, &layer.query, &inputs, &query)?;
        sum_up(&mut normed, &back.linear(Role::AttnK, number, &layer.key, &inputs, &key)?);
        sum_up(&mut normed, &back.linear(Role::AttnV, number, &layer.value, &inputs, &value)?);
        norm_backward(eps, &forward.entered, &layer.attn_norm, &mut normed);
        sum_up(gradient, &normed);
        Ok(())
    }

    /// Norms heads and rotates them by their positions. With negated sines, it rotates backwards.
    pub(super) fn heads(
        &self,
        isa: Isa,
        config: &Config,
        rows: &mut [f32],
        width: usize,
        weight: Option<&[f32]>,
    ) {
        let pairs = self.cos.len() / (rows.len() / width);
        each_row(rows, width, |i, row| {
            if let Some(weight) = weight {
                run_loop(isa, NormHeads { row, weight, eps: config.norm_eps });
            }
            let at = i * pairs..(i + 1) * pairs;
            rotate(isa, config, row, &self.cos[at.clone()], &self.sin[at]);
        });
    }

    /// Multiplies queries, or their gradients, by the temperature of their positions.
    pub(super) fn warm(&self, config: &Config, query: &mut [f32]) {
        if let Some(temperature) = config.temperature {
            each_row(query, config.n_query(), |i, row| {
                let factor = temperature.factor(i);
                row.iter_mut().for_each(|x| *x *= factor);
            });
        }
    }
}
