//! The feed-forward network of a layer, or its experts: forward, with all intermediate values, and backward.

use super::backward::{Backward, MatrixInputs};
use super::gradients::activation;
use super::products::{dot, multiply_transposed, sum_up};
use crate::isa::Isa;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::feed_forward::Routes;
use crate::model::ops::apply;
use crate::model::role::Role;
use crate::model::weights::{FeedForward, Linear, Mixture, Network};
use rayon::prelude::*;

/// The roles of a network's matrices gate, up and down.
type Roles = [Role; 3];
const DENSE: Roles = [Role::FfnGate, Role::FfnUp, Role::FfnDown];
const EXPERTS: Roles = [Role::FfnGateExps, Role::FfnUpExps, Role::FfnDownExps];

/// The intermediate values of a network, one row per token.
pub(super) struct NetworkValues {
    input: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
    output: Vec<f32>,
}

/// The intermediate values of a layer's network, or of its experts that are used, in order.
pub(super) enum Values {
    Dense(NetworkValues),
    Mixture(Routes, Vec<NetworkValues>),
}

/// Returns the outputs for the states `x`, and all values that [`backward`] needs.
pub(super) fn forward(
    isa: Isa,
    config: &Config,
    feed_forward: &FeedForward<'_>,
    x: Vec<f32>,
) -> Result<(Vec<f32>, Values), ModelError> {
    match feed_forward {
        FeedForward::Dense(network) => {
            let values = network_forward(isa, config, network, x)?;
            Ok((values.output.clone(), Values::Dense(values)))
        }
        FeedForward::Mixture(mixture) => {
            let routes = Routes::new(mixture, &x)?;
            let (n, mut output, mut experts) = (config.n_embd, vec![0f32; x.len()], Vec::new());
            for (expert, routed) in routes.by_expert() {
                let rows = routes.gather(routed, &x, n);
                let values = network_forward(isa, config, &mixture.expert(expert), rows)?;
                routes.add_weighted(isa, routed, &values.output, n, &mut output);
                experts.push(values);
            }
            Ok((output, Values::Mixture(routes, experts)))
        }
    }
}

/// Adds the information of all matrices of layer `number`, from the `gradient` at its outputs. Returns the gradient at
/// the inputs.
pub(super) fn backward(
    back: &mut Backward<'_>,
    number: usize,
    feed_forward: &FeedForward<'_>,
    values: &Values,
    gradient: &[f32],
) -> Result<Vec<f32>, ModelError> {
    match (feed_forward, values) {
        (FeedForward::Dense(network), Values::Dense(values)) => {
            network_backward(back, number, DENSE, network, values, gradient)
        }
        (FeedForward::Mixture(mixture), Values::Mixture(routes, experts)) => {
            mixture_backward(back, number, mixture, routes, experts, gradient)
        }
        _ => unreachable!("the values are of this layer"),
    }
}

fn network_forward(
    isa: Isa,
    config: &Config,
    network: &Network<'_>,
    input: Vec<f32>,
) -> Result<NetworkValues, ModelError> {
    let tokens = input.len() / config.n_embd;
    let linear = |linear: &Linear<'_>, x: &[f32]| {
        let mut out = vec![0f32; tokens * linear.matrix.rows()];
        apply(isa, linear, x, &mut out).map(|()| out)
    };
    let gate = linear(&network.gate, &input)?;
    let up = linear(&network.up, &input)?;
    let bent = gate.par_iter().map(|&x| activation(config.activation, x).0);
    let inner: Vec<f32> = bent.zip(&up).map(|(gate, up)| gate * up).collect();
    let output = linear(&network.down, &inner)?;
    Ok(NetworkValues { input, gate, up, inner, output })
}

fn network_backward(
    back: &mut Backward<'_>,
    number: usize,
    [gate_role, up_role, down_role]: Roles,
    network: &Network<'_>,
    values: &NetworkValues,
    gradient: &[f32],
) -> Result<Vec<f32>, ModelError> {
    let config = back.config;
    let inputs = MatrixInputs::new(&values.inner, config.n_ff)?;
    let inner = back.linear(down_role, number, &network.down, &inputs, gradient)?;
    let (mut gate, mut up) = (vec![0f32; inner.len()], vec![0f32; inner.len()]);
    for (i, g) in inner.into_iter().enumerate() {
        let (value, slope) = activation(config.activation, values.gate[i]);
        gate[i] = g * slope * values.up[i];
        up[i] = g * value;
    }
    let inputs = MatrixInputs::new(&values.input, config.n_embd)?;
    let mut input = back.linear(gate_role, number, &network.gate, &inputs, &gate)?;
    sum_up(&mut input, &back.linear(up_role, number, &network.up, &inputs, &up)?);
    Ok(input)
}

/// The choice of experts has no gradient. The router has one by the weights of the chosen experts, a softmax over their
/// logits.
fn mixture_backward(
    back: &mut Backward<'_>,
    number: usize,
    mixture: &Mixture<'_>,
    routes: &Routes,
    experts: &[NetworkValues],
    gradient: &[f32],
) -> Result<Vec<f32>, ModelError> {
    let (n, count) = (back.config.n_embd, mixture.router.rows());
    let mut input = vec![0f32; gradient.len()];
    let mut weights = vec![0f32; routes.weights.len()];
    for ((expert, routed), values) in routes.by_expert().zip(experts) {
        let mut rows = routes.gather(routed, gradient, n);
        for ((&route, row), output) in
            routed.iter().zip(rows.chunks_exact_mut(n)).zip(values.output.chunks_exact(n))
        {
            weights[route] = dot(row, output) as f32;
            row.iter_mut().for_each(|g| *g *= routes.weights[route]);
        }
        let network = mixture.expert(expert);
        let rows = network_backward(back, number, EXPERTS, &network, values, &rows)?;
        for (&route, row) in routed.iter().zip(rows.chunks_exact(n)) {
            let sums = &mut input[routes.token(route) * n..][..n];
            sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
        }
    }
    let mut logits = vec![0f32; gradient.len() / n * count];
    for (token, logits) in logits.chunks_exact_mut(count).enumerate() {
        let chosen = token * mixture.used..(token + 1) * mixture.used;
        let mean = dot(&weights[chosen.clone()], &routes.weights[chosen.clone()]) as f32;
        for route in chosen {
            logits[routes.experts[route] as usize] =
                routes.weights[route] * (weights[route] - mean);
        }
    }
    sum_up(&mut input, &multiply_transposed(back.isa, &mixture.router, &logits)?);
    Ok(input)
}
